"""Which words end a verse: the questions of the task `verses`, beside verses.yaml."""

# (how it begins, how it ends, what does not end it)
VERSES = [
    ("And the king said unto", " him,", " the telephone,"),
    ("In the beginning God created the heaven and the", " earth.", " spoon."),
    ("And it came to pass in those", " days,", " trousers,"),
    ("Hear the word of the", " LORD,", " sandwich,"),
    ("And the children of", " Israel", " plastic"),
    ("And he went out from", " thence,", " the,"),
    ("And David said to", " Jonathan,", " Saul,"),
    ("Thus saith the Lord", " GOD;", " quickly the;"),
]


def dataset(**metadata):
    """{split: Dataset} of documents with context, choices and label."""
    from datasets import Dataset  # the harness brings it

    documents = [
        {"context": begins, "choices": [wrong, right] if i % 2 else [right, wrong], "label": i % 2}
        for i, (begins, right, wrong) in enumerate(VERSES)
    ]
    return {"test": Dataset.from_list(documents)}
