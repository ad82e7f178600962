"""Text from a prompt: python examples/generate.py [MODEL]

MODEL is a .gguf file, a Hugging Face folder or a name on the hub; without one the model in the
package is used.
"""

import sys

import bitnet

with bitnet.load(*sys.argv[1:2]) as model:
    # The same seed gives the same text on every CPU; without one completion.seed tells it.
    completion = model.generate("In the beginning", max_tokens=40, temperature=0.8, seed=1)
    print(completion.text)
    print(
        f"-- {completion.completion_tokens} tokens, {completion.generation_tps:.0f} a second, "
        f"ended by {completion.finish_reason}"
    )
