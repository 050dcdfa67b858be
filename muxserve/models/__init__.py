"""The networks: multiplexed BERT and ELECTRA as Hugging Face models, and families of them on disk.

Importing this package registers its ``model_type`` values with ``AutoConfig`` and
``AutoModelFor...``.
"""

from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from muxserve.models.config import MuxBertConfig, MuxConfig, MuxElectraConfig
from muxserve.models.output import MuxOutput
from muxserve.models.tasks import (
    MuxBertForMaskedLM,
    MuxBertForSequenceClassification,
    MuxBertForTokenClassification,
    MuxElectraForPreTraining,
    MuxElectraForSequenceClassification,
    MuxElectraForTokenClassification,
)

AutoConfig.register(MuxBertConfig.model_type, MuxBertConfig)
AutoConfig.register(MuxElectraConfig.model_type, MuxElectraConfig)
AutoModelForSequenceClassification.register(MuxBertConfig, MuxBertForSequenceClassification)
AutoModelForSequenceClassification.register(MuxElectraConfig, MuxElectraForSequenceClassification)
AutoModelForTokenClassification.register(MuxBertConfig, MuxBertForTokenClassification)
AutoModelForTokenClassification.register(MuxElectraConfig, MuxElectraForTokenClassification)
AutoModelForMaskedLM.register(MuxBertConfig, MuxBertForMaskedLM)
AutoModelForPreTraining.register(MuxElectraConfig, MuxElectraForPreTraining)

__all__ = [
    "MuxBertConfig",
    "MuxBertForMaskedLM",
    "MuxBertForSequenceClassification",
    "MuxBertForTokenClassification",
    "MuxConfig",
    "MuxElectraConfig",
    "MuxElectraForPreTraining",
    "MuxElectraForSequenceClassification",
    "MuxElectraForTokenClassification",
    "MuxOutput",
]
