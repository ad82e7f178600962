"""Many prompts, four at a time: python examples/batch.py [MODEL]"""

import sys
import time

import bitnet

WORDS = ("sea", "king", "house", "morning", "letter", "road", "river", "ship", "garden", "night")
PROMPTS = [f"The {word} was" for word in WORDS]

# A step reads the weights once for all sequences that run; slots is how many may run at once. The
# text of each is the one that it would have alone.
with bitnet.load(*sys.argv[1:2], slots=4) as model:
    begin = time.perf_counter()
    # errors="return": a prompt that is too long has its error in its place, the others their text.
    results = model.generate(
        [*PROMPTS, "too long " * model.context], max_tokens=24, seed=1, errors="return"
    )
    seconds = time.perf_counter() - begin
    done = [result for result in results if not isinstance(result, BaseException)]
    for prompt, result in zip(PROMPTS, done, strict=True):
        print(f"{prompt}{result.text}".replace("\n", " "))
    print(f"not done: {results[-1]}")
    n_tokens = sum(completion.completion_tokens for completion in done)
    print(f"-- {len(done)} texts, {n_tokens / seconds:.0f} tokens a second")
