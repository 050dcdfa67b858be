"""Forward times of a family on some machine, and the file that keeps them."""

import json
from dataclasses import dataclass
from pathlib import Path

from muxserve.engine.times import ForwardTimes
from muxserve.errors import InvalidInput


@dataclass(frozen=True)
class MachineTimes:
    """Forward times of a family on some machine.

    Attributes:
        family: its name or folder.
        in_flight: forwards that an engine runs at once there.
        times: seconds of a forward.
        machine: what it is, as ``muxserve.measure.machine`` describes it.
    """

    family: str
    in_flight: int
    times: ForwardTimes
    machine: dict[str, str]

    def write(self, file: Path) -> None:
        """Keep the times in a file of JSON."""
        values = {
            "family": self.family,
            "machine": self.machine,
            "in_flight": self.in_flight,
            **self.times.dump(),
        }
        file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "MachineTimes":
        """Read what ``write`` wrote.

        Raises:
            InvalidInput: if the file holds anything else.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                str(values["family"]),
                int(values["in_flight"]),
                ForwardTimes.load(values),
                dict(values["machine"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{file}: not what --save-times writes ({error})", field="times"
            ) from None
