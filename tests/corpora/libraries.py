"""The networks of every library, by its name."""

from collections.abc import Mapping, Sequence

from tests.corpora.network import Network
from tests.corpora.peft_networks import PEFT_NETWORKS
from tests.corpora.segmentation_networks import SEGMENTATION_NETWORKS
from tests.corpora.timm_models import TIMM_MODELS
from tests.corpora.transformers_networks import TRANSFORMERS_NETWORKS
from tests.corpora.ultralytics_networks import ULTRALYTICS_NETWORKS

LIBRARIES: Mapping[str, Sequence[Network]] = {
    "timm": TIMM_MODELS,
    "transformers": TRANSFORMERS_NETWORKS,
    "ultralytics": ULTRALYTICS_NETWORKS,
    "segmentation_models_pytorch": SEGMENTATION_NETWORKS,
    "peft": PEFT_NETWORKS,
}
