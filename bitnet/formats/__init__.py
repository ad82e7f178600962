"""Containers and layouts, no model: GGUF, safetensors, ternary and float blocks."""
