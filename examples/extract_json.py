"""An object out of a text, in the form of a JSON schema: python examples/extract_json.py [MODEL]

It needs the extra `grammar`. A model cannot leave the form; what it fills in is worth as much as
the model is.
"""

import json
import sys

import bitnet

TEXT = (
    "The Eddystone lighthouse, finished in 1882, stands 49 metres high off the coast of Cornwall."
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "year": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "kind": {"enum": ["lighthouse", "bridge", "castle"]},
    },
    "required": ["name", "year", "kind"],
}

with bitnet.load(*sys.argv[1:2]) as model:
    # The model is not told of the schema: the prompt has to say what is wanted.
    message = f"{TEXT}\nWrite name, year and kind of the building as JSON."
    completion = model.chat(
        [{"role": "user", "content": message}], json_schema=SCHEMA, max_tokens=120, seed=1
    )
found = json.loads(completion.text)
print(json.dumps(found, indent=2))
