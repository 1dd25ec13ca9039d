"""Network architectures and the functions that compute them."""

from bardflow.model.networks.attention import QUERIES
from bardflow.model.networks.autograd import backward_from
from bardflow.model.networks.bits import Bits
from bardflow.model.networks.cache import KeyValueCache
from bardflow.model.networks.classic import BLOCK_NAMES, ClassicGPT
from bardflow.model.networks.dropout import Dropout
from bardflow.model.networks.gpt import build, count_parameters, working_copy
from bardflow.model.networks.network import GPT, Parameters, network
from bardflow.model.networks.spec import OWN_FIELDS, GPTSpec
from bardflow.model.networks.tables import NOT_CHARGED, head_loss
from bardflow.model.networks.weights import WrongWeights, fill, require_alike

__all__ = [
    "BLOCK_NAMES",
    "GPT",
    "NOT_CHARGED",
    "OWN_FIELDS",
    "QUERIES",
    "Bits",
    "ClassicGPT",
    "Dropout",
    "GPTSpec",
    "KeyValueCache",
    "Parameters",
    "WrongWeights",
    "backward_from",
    "build",
    "count_parameters",
    "fill",
    "head_loss",
    "network",
    "require_alike",
    "working_copy",
]
