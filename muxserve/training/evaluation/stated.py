"""What a family states of its quality: written into ``family.json``, and checked."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from muxserve.models.spec import FAMILY_FILE, FamilySpec, write_spec
from muxserve.training.evaluation.quality import Measured
from muxserve.training.work_folder import unwritten

#: How far a figure measured again may be from the stated one: 0.2 points.
TOLERANCE = 0.002


def store_measured(spec: FamilySpec, measured: Sequence[Measured], folder: Path) -> None:
    """Write measured figures into the ``family.json`` of a folder.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    by_n = {one.num_instances: one for one in measured}
    for member in spec.members:
        if (one := by_n.get(member.num_instances)) is not None:
            member.quality = one.quality
            member.flip_rate = one.flip_rate
            member.ensembled = one.ensembled
            member.calibration_error = one.calibration_error
            member.by_length = one.by_length
    try:
        with TemporaryDirectory(dir=folder, prefix=".") as building:
            write_spec(Path(building), spec, files=folder)
            (Path(building) / FAMILY_FILE).replace(folder / FAMILY_FILE)
    except OSError as error:
        raise unwritten(folder / FAMILY_FILE, error) from None


def deviations(spec: FamilySpec, measured: Sequence[Measured]) -> list[str]:
    """The figures that differ from those that a family states by more than ``TOLERANCE``, in words.

    The groupings are the same every time, so only a processor's rounding can make a difference.
    Where one text is more than the tolerance, one text's answer may differ.
    """
    found = []
    stated = {member.num_instances: member for member in spec.members}
    for one in measured:
        n = f"N={one.num_instances}"
        member = stated.get(one.num_instances)
        if member is None or member.quality is None:
            found.append(f"{n}: the family states no quality")
            continue
        if member.quality.dataset_sha256 != one.quality.dataset_sha256:
            found.append(f"{n}: stated on other data ({member.quality.dataset})")
            continue
        if member.quality.groupings != one.quality.groupings:
            found.append(f"{n}: stated over {member.quality.groupings} groupings; measure as many")
            continue
        tolerance = max(TOLERANCE, 1 / one.quality.examples)
        for name, now, then in (
            (one.quality.metric, one.quality.value, member.quality.value),
            ("flip rate", one.flip_rate, member.flip_rate),
            ("ensembled", one.ensembled, member.ensembled),
            ("calibration error", one.calibration_error, member.calibration_error),
        ):
            if then is None:
                found.append(f"{n}: the family states no {name}")
            # A hair more, for what rounding to four digits adds.
            elif abs(now - then) > tolerance + 1e-4:
                found.append(f"{n}: {name} is {now:.4f}, the family states {then:.4f}")
    return found
