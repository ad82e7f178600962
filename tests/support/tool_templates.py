"""Chat templates that know tools: in our words, with what the published ones write around calls."""

from bitnet.text.tool_forms import FALCON, LLAMA3, QWEN3, QWEN35

QWEN3_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}<tools>"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>"
    "\n{% endif %}{% for m in messages %}{% if m.role == 'user' or m.role == 'system' and "
    "not loop.first %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}"
    "{% for call in m.tool_calls %}{% if not loop.first or m.content %}\n{% endif %}"
    "{% if call.function %}{% set call = call.function %}{% endif %}<tool_call>\n"
    '{"name": "{{ call.name }}", "arguments": '
    "{% if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}"
    "{% endif %}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{% if not tools is defined %}{% set tools = none %}{% endif %}"
    "{% set first = messages[0].content %}"
    "<|start_header_id|>user<|end_header_id|>\n\n{% if tools is not none %}"
    "{% for t in tools %}{{ t | tojson(indent=4) }}\n\n{% endfor %}{% endif %}{{ first }}<|eot_id|>"
    "{% for m in messages[1:] %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('single tool-calls only') }}{% endif %}"
    "{% set call = m.tool_calls[0].function %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
    "{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endif %}{% endfor %}"
)
FALCON_TEMPLATE = (
    "{% if tools %}<|system|>\n<tools>{{ tools | tojson(indent=2) }}</tools>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n{{ m.content }}"
    "{% if m.tool_calls %}\n<tool_call>\n{{ m.tool_calls | tojson(indent=2) }}\n</tool_call>"
    "{% endif %}\n{% elif m.role == 'tool' %}"
    "{% if tools %}<|assistant|>\n<tool_response>\n{{ m.content }}\n</tool_response>\n{% endif %}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}\n{% endif %}{% endfor %}"
)
QWEN35_TEMPLATE = QWEN3_TEMPLATE.replace(
    '{"name": "{{ call.name }}", "arguments": '
    "{% if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}"
    "{% endif %}}\n",
    "<function={{ call.name }}>\n{% for name, value in call.arguments | items %}"
    "<parameter={{ name }}>\n{% if value is string %}{{ value }}{% else %}{{ value | tojson }}"
    "{% endif %}{{ '\n</parameter>\n' }}{% endfor %}</function>\n",
)
TEMPLATES = {
    QWEN3: QWEN3_TEMPLATE, LLAMA3: LLAMA3_TEMPLATE, FALCON: FALCON_TEMPLATE,
    QWEN35: QWEN35_TEMPLATE,
}  # fmt: skip
