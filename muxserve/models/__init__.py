"""The networks: multiplexed BERT as Hugging Face models, and families of them on disk.

Importing this package registers our ``model_type`` with ``AutoConfig`` and
``AutoModelForSequenceClassification``.
"""

from transformers import AutoConfig, AutoModelForSequenceClassification

from muxserve.models.bert import MuxBertForSequenceClassification
from muxserve.models.config import MuxBertConfig
from muxserve.models.output import MuxOutput

AutoConfig.register(MuxBertConfig.model_type, MuxBertConfig)
AutoModelForSequenceClassification.register(MuxBertConfig, MuxBertForSequenceClassification)

__all__ = ["MuxBertConfig", "MuxBertForSequenceClassification", "MuxOutput"]
