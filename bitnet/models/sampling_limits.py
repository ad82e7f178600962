"""Bounds of what a model's author sets for sampling; they are those of requests too."""

# field: (lower, upper bound); floats where values may be. A request's top_k has no such bound.
SAMPLING_LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 1 << 21),
    "top_p": (0.0, 1.0),
}
