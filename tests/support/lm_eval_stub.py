"""What bitnet.lm_eval uses of lm-evaluation-harness, written by its documentation, for tests where
the harness is not installed: `.ci/long eval` runs the same tests against the real one."""

import types
from types import SimpleNamespace


class TemplateLM:
    """The base class: it splits texts into token ids, and leaves the scores to its subclass."""

    tokenizer = None

    def __init__(self):
        self.cache_hook = SimpleNamespace(add_partial=lambda kind, arguments, result: None)

    @classmethod
    def create_from_arg_obj(cls, arguments, more=None):
        return cls(**arguments, **{k: v for k, v in (more or {}).items() if v is not None})

    def loglikelihood(self, requests, disable_tqdm=False):
        pairs = []
        for context, continuation in (request.args for request in requests):
            if context:
                kept = context.rstrip()
                whole = self.tok_encode(context + continuation)
                ids = self.tok_encode(kept)
                pairs.append(((context, continuation), ids, whole[len(ids) :]))
            else:
                ids = self.tok_encode(continuation, add_special_tokens=False)
                pairs.append(((context, continuation), [self.prefix_token_id], ids))
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)


def rolling_windows(token_list, prefix_token, max_seq_len, context_len):
    """Yield (tokens that are fed, tokens that are predicted), the last ones full of context."""
    assert context_len == 1
    for begin in range(0, len(token_list), max_seq_len):
        end = min(begin + max_seq_len, len(token_list))
        fed = [prefix_token, *token_list[: end - 1]]
        yield fed[-max_seq_len:], token_list[begin:end]


def disjoint(window):
    fed, predicted = window
    return fed[: len(fed) - len(predicted) + 1], predicted


def modules():
    """{name: module}, for sys.modules."""
    contents = {
        "lm_eval": {},
        "lm_eval.__main__": {"cli_evaluate": None},
        "lm_eval.api": {},
        "lm_eval.api.model": {"TemplateLM": TemplateLM},
        "lm_eval.api.registry": {"register_model": lambda name: lambda cls: cls},
        "lm_eval.utils": {
            "get_rolling_token_windows": rolling_windows,
            "make_disjoint_window": disjoint,
        },
    }
    found = {}
    for name, members in contents.items():
        found[name] = types.ModuleType(name)
        vars(found[name]).update(members)
    return found
