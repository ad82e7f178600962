"""Examples for each command's --help; a test reads each of them as the command would."""

EXAMPLES = {
    "run": """
bitnet run "What is a lighthouse?" --seed 1
bitnet run -m microsoft/bitnet-b1.58-2B-4T-gguf -f question.txt -n 200
git log -5 | bitnet run --system "Sum this up in a sentence." -m model.gguf
bitnet run --raw "It was" --temperature 0.8 --logit-bias 13=-inf""",
    "chat": """
bitnet chat
bitnet chat microsoft/bitnet-b1.58-2B-4T-gguf --system "Answer in one sentence."
bitnet chat model.gguf --context 4096 --temperature 0.7""",
    "serve": """
bitnet serve --port 8080
bitnet serve ORG/NAME --slots 8 --context 4096
bitnet serve model.gguf --host 0.0.0.0 --api-key SECRET --allow-host example.org""",
    "embed": """
bitnet embed ORG/NAME "a text" "another text"
bitnet embed model.gguf --prompt-name query < questions.txt""",
    "pull": """
bitnet pull microsoft/bitnet-b1.58-2B-4T-gguf
bitnet pull ORG/NAME@REVISION
bitnet pull https://huggingface.co/ORG/NAME/blob/main/FILE.gguf""",
    "list": """
bitnet list
bitnet list --json""",
    "show": """
bitnet show ORG/NAME""",
    "rm": """
bitnet rm ORG/NAME""",
    "convert": """
bitnet convert ORG/NAME model.gguf
bitnet convert model.gguf folder --to hf""",
    "verify": """
bitnet verify model.gguf
bitnet verify model.gguf --against ORG/NAME""",
    "inspect": """
bitnet inspect ORG/NAME
bitnet inspect model.gguf --tensors""",
    "memory": """
bitnet memory model.gguf --context 8192 --kv-dtype int8
bitnet memory model.gguf --slots 4 --measure""",
    "info": """
bitnet info --json""",
    "perplexity": """
bitnet perplexity model.gguf wiki.test.raw --chunks 20""",
    "compare": """
bitnet compare reference.gguf other.gguf text.txt""",
    "bench": """
bitnet bench model.gguf --threads 2""",
    "cache": """
bitnet cache list
bitnet cache clear""",
    "completion": """
bitnet completion bash > ~/.local/share/bash-completion/completions/bitnet
bitnet completion zsh > ~/.zfunc/_bitnet
bitnet completion fish > ~/.config/fish/completions/bitnet.fish""",
}
