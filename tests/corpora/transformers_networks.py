"""Networks of `transformers`.

With batch norm or convolutions; and some where nothing, or little, can be fused.
"""

from tests.corpora.transformers_classifiers import CLASSIFIERS
from tests.corpora.transformers_dense import DENSE
from tests.corpora.transformers_sequences import SEQUENCES

TRANSFORMERS_NETWORKS = [*CLASSIFIERS, *DENSE, *SEQUENCES]
