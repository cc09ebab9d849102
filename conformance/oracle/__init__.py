"""Independent reference decoders in float64, written from the papers; no modelling code of
transformers is used."""

from conformance.oracle.architecture import Architecture as Architecture
from conformance.oracle.decoder import BFLOAT16 as BFLOAT16
from conformance.oracle.decoder import FLOAT64 as FLOAT64
from conformance.oracle.decoder import Decoder as Decoder
from conformance.oracle.decoder import Place as Place
from conformance.oracle.decoder import Precision as Precision
from conformance.oracle.families import InvalidConfig as InvalidConfig
from conformance.oracle.families import NoReference as NoReference
from conformance.oracle.families import architecture_of as architecture_of
