"""The operations of the graph, from one place: a graph says ``ops.linear(...)`` and imports this.

Every operation takes operands that are bound once (operands.pyx) and, where rows are split over
threads, a Batch.
"""

from .attention import attention, partials_floats, store_kv
from .delta_net import causal_conv, delta_gates, delta_rule, gate_heads, split_queries
from .elementwise import (
    argmax,
    embed,
    exp,
    gated_activation,
    gather_rows,
    head_norm,
    quantize,
    read_bandwidth,
    rms_norm,
    rope,
    rope_table,
)
from .grouped import grouped_workspace_bytes, scan_groups
from .gumbel import sample
from .linear import find_code_3, linear, workspace_bytes
from .lm_head import head, screen, screened
from .rotation import group_heads, rotate
from .screen_bounds import derive_screen
from .threads import openmp, startable_threads

__all__ = [
    "argmax",
    "attention",
    "causal_conv",
    "delta_gates",
    "delta_rule",
    "derive_screen",
    "embed",
    "exp",
    "find_code_3",
    "gate_heads",
    "gated_activation",
    "gather_rows",
    "group_heads",
    "grouped_workspace_bytes",
    "head",
    "head_norm",
    "linear",
    "openmp",
    "partials_floats",
    "quantize",
    "read_bandwidth",
    "rms_norm",
    "rope",
    "rope_table",
    "rotate",
    "sample",
    "scan_groups",
    "screen",
    "screened",
    "split_queries",
    "startable_threads",
    "store_kv",
    "workspace_bytes",
]
