"""A reply as it comes, then the next one: python examples/chat.py [MODEL]"""

import sys

import bitnet

messages = []
with bitnet.load(*sys.argv[1:2]) as model:
    for question in ("What is a lighthouse?", "And what is a harbour?"):
        messages.append({"role": "user", "content": question})
        print(f"> {question}")
        # What was read for the last reply is kept: of the longer conversation only the end is read.
        with model.chat_stream(messages, max_tokens=40, temperature=0.7, seed=1) as stream:
            reply = ""
            for piece in stream:
                print(piece, end="", flush=True)
                reply += piece
        print()
        messages.append({"role": "assistant", "content": reply})
