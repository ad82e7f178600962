"""lm-evaluation-harness's own command line, which knows the model `bitnet` too."""

from . import adapter


def main() -> None:
    """As `lm_eval`: bitnet-lm-eval --model bitnet --model_args pretrained=MODEL --tasks TASK."""
    adapter.cli_evaluate()


if __name__ == "__main__":
    main()
