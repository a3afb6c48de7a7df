"""Instructions become whole conversations in rows, and what is learned of them is what was written by hand."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_world import (
    BARE,
    CHATML,
    GENERATION,
    INST,
    SPECIAL,
    THINKING,
    by_hand,
    chat_tokenizer,
    conversations,
    write_chats,
)
from data_world import content, data_config, documents, write_source

from compress.base.errors import InputError, UsageError
from compress.data import TokenStore, prepare, text_rows
from compress.data.sources import stream
from compress.data.sources.instructions import Asked, Form
from compress.data.store import preparation, shards
from compress.model.framing import Framing

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
)
TURNS = ["hi", "yo", "more?", "no"]


def prepared(tmp_path: Path, source: Path, template: str | None = None, **options: Any) -> TokenStore:
    """A store without held-out rows, of a tokenizer with that template."""
    chat_tokenizer(template).save_pretrained(tmp_path / "tokenizer")
    config = data_config(source, **{"heldout_sequences": 0, "seq_len": 200, **options})
    return prepare(config, tmp_path / "tokenizer", tmp_path / "store", visible=False)


@pytest.mark.parametrize(
    ("columns", "asked", "form"),
    [
        (["id", "text", "messages"], "auto", Form("text", ("text",))),
        (["messages", "text"], "chat", Form("chat", ("messages",))),
        (["prompt", "messages"], "auto", Form("chat", ("messages",))),
        (["conversations", "id"], "auto", Form("chat", ("conversations",))),
        (["instruction", "output"], "auto", Form("alpaca", ("instruction", "output", "input"))),
        (["instruction", "output", "prompt", "completion"], "completion", Form("completion", ("prompt", "completion"))),
        (["prompt", "completion"], "auto", Form("completion", ("prompt", "completion"))),
        (["prompt", "completion"], "alpaca", None),
        (["prompt", "completion"], "text", None),
        (["body"], "auto", None),
    ],
)
def test_the_form_is_found_from_the_columns(columns: list[str], asked: Any, form: Form | None) -> None:
    assert Asked(asked, "text").find(columns) == form


FORMS = {  # one conversation, in each spelling
    "alpaca": {"instruction": "say yo", "input": "", "output": "yo"},
    "alpaca, no input": {"instruction": "say yo", "output": "yo"},
    "chat": {"messages": [{"role": "user", "content": "say yo"}, {"role": "assistant", "content": "yo"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "say yo"}, {"from": "gpt", "value": "yo"}]},
    "completion": {"prompt": "say yo", "completion": "yo"},
    "completion of messages": {
        "prompt": [{"role": "user", "content": "say yo"}],
        "completion": [{"role": "assistant", "content": "yo"}],
    },
}


@pytest.mark.parametrize("template", [CHATML, None], ids=["chat template", "none"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "arrow"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_in_each_format(form: str, ending: str, template: str | None, tmp_path: Path) -> None:
    rows = [FORMS[form]] * 3
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text(json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    store = prepared(tmp_path, path, template)
    if template is None:
        written = f"{ALPACA}\n\n### Instruction:\nsay yo\n\n### Response:\n«yo<eos>»"
    else:
        written = "<|im_start|>user\nsay yo<|im_end|>\n<|im_start|>assistant\n«yo<|im_end|>»\n"
    assert conversations(store) == [by_hand(written, chat_tokenizer())] * 3


def test_alpacas_input_has_a_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": "add", "input": "1, 2", "output": "3"}) + "\n")
    written = f"{ALPACA_INPUT}\n\n### Instruction:\nadd\n\n### Input:\n1, 2\n\n### Response:\n«3<eos>»"
    store = prepared(tmp_path, path, seq_len=300)
    assert conversations(store) == [by_hand(written, chat_tokenizer())]
    (tmp_path / "own").mkdir()
    written = "<|im_start|>user\nadd\n\n1, 2<|im_end|>\n<|im_start|>assistant\n«3<|im_end|>»\n"
    assert conversations(prepared(tmp_path / "own", path, CHATML)) == [by_hand(written, chat_tokenizer())]


USER, ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"
TWO_TURNS = f"{USER}hi<|im_end|>\n{ASSISTANT}«yo<|im_end|>»\n{USER}more?<|im_end|>\n{ASSISTANT}«no<|im_end|>»\n"
TEMPLATES = {
    "found": (CHATML, TWO_TURNS),
    "marked to the end of the turn": (GENERATION["to the end of the turn"], TWO_TURNS),
    "marked without the end of the turn": (GENERATION["content"], TWO_TURNS),
    "marked with what follows": (GENERATION["all"], TWO_TURNS.replace("»\n", "\n»")),
    "stripped, and a space before the end": (
        INST,
        "<eos>[INST] hi [/INST]« yo <eos>»[INST] more? [/INST]« no <eos>»",
    ),
    "another prefix in the last turn": (
        THINKING,
        f"{USER}hi<|im_end|>\n{ASSISTANT}«yo<|im_end|>»\n{USER}more?<|im_end|>\n{ASSISTANT}"
        "«<think>\n\n</think>\n\nno<|im_end|>»\n",
    ),
    "nothing ends a turn": (BARE, "user: hi\nassistant: «yo»\nuser: more?\nassistant: «no\n<eos>»"),
    "none": (
        None,
        f"{ALPACA}\n\n### Instruction:\nhi\n\n### Response:\n«yo<eos>»\n\n### Instruction:\nmore?\n\n### Response:\n"
        "«no<eos>»",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_under_each_kind_of_template(name: str, tmp_path: Path) -> None:
    template, written = TEMPLATES[name]
    store = prepared(tmp_path, write_chats(tmp_path / "a.jsonl", [TURNS]), template, seq_len=256)
    assert conversations(store) == [by_hand(written, chat_tokenizer())]
    assert store.framing == Framing()


WRITTEN = {  # two turns (u, a), (v, b)
    "chatml": (CHATML, "{U}{u}<|im_end|>\n{A}«{a}<|im_end|>»\n{U}{v}<|im_end|>\n{A}«{b}<|im_end|>»\n"),
    "thinking": (
        THINKING,
        "{U}{u}<|im_end|>\n{A}«{a}<|im_end|>»\n{U}{v}<|im_end|>\n{A}«<think>\n\n</think>\n\n{b}<|im_end|>»\n",
    ),
    "bare": (BARE, "user: {u}\nassistant: «{a}»\nuser: {v}\nassistant: «{b}\n<eos>»"),
}


@pytest.mark.parametrize("answer", ["t", "<", "i", "m", "user", " x ", "no\n\nno", "assistant"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_an_answer_is_not_taken_for_what_is_around_it(kind: str, answer: str, tmp_path: Path) -> None:
    template, written = WRITTEN[kind]
    chat = [f"say {answer}", answer, f"{answer}?", answer]
    store = prepared(tmp_path, write_chats(tmp_path / "a.jsonl", [chat]), template, seq_len=400)
    filled = written.format(U=USER, A=ASSISTANT, **dict(zip("uavb", chat, strict=True)))
    assert conversations(store) == [by_hand(filled, chat_tokenizer())]


@pytest.mark.parametrize("marking", ["all", "to the end of the turn"])
def test_answers_are_those_that_transformers_finds(marking: str, tmp_path: Path) -> None:
    chats = [[text + "é" for text in documents(2 * turns, turns)] for turns in (1, 2, 3)]
    store = prepared(tmp_path, write_chats(tmp_path / "a.jsonl", chats), GENERATION[marking], seq_len=2000)
    tokenizer, expected = chat_tokenizer(GENERATION[marking]), []
    for chat in chats:
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(chat)]
        found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        expected.append((found["input_ids"], [bool(known) for known in found["assistant_masks"]]))
    assert conversations(store) == expected


def test_all_is_learned_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "a.jsonl", [TURNS])
    found = conversations(prepared(tmp_path, path, CHATML, train_on_prompt=True))
    ids, _ = by_hand(TWO_TURNS, chat_tokenizer())
    assert found == [(ids, [False] + [True] * (len(ids) - 1))]  # nothing predicts the first


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Chats of all lengths, some with no answer, some alike."""
    rng, texts = random.Random(3), documents(400, 3)
    chats: list[Any] = [rng.choices(texts, k=2 * rng.randint(1, 3)) for _ in range(120)]
    chats[5] = chats[50] = ["no answer"]
    chats[9] = chats[8]
    return write_chats(tmp_path / "many.jsonl", chats)


def expected_of(path: Path, seq_len: int) -> list[tuple[list[int], list[bool]]]:
    """What rows of `seq_len` hold of chats in ChatML, by hand, in their order."""
    found = []
    for line in path.read_text().splitlines():
        messages = json.loads(line)["messages"]
        parts = [
            f"{USER}{m['content']}<|im_end|>\n" if m["role"] == "user" else f"{ASSISTANT}«{m['content']}<|im_end|>»\n"
            for m in messages
        ]
        ids, learned = by_hand("".join(parts), chat_tokenizer())
        if any(learned[:seq_len]):
            found.append((ids[:seq_len], learned[:seq_len]))
    return found


def test_conversations_are_whole_and_in_order(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = prepared(tmp_path, many, CHATML, seq_len=300)
    assert conversations(store) == expected_of(many, 300)
    told = store.index["instructions"]
    longer = [ids for ids, _ in expected_of(many, 10**6) if len(ids) > 300]
    lost = len(expected_of(many, 10**6)) - len(expected_of(many, 300))
    assert (told["no_answer"], told["cut"]) == (2 + lost, len(longer) - lost)
    assert store.index["skipped"]["bad_rows"] == 2 + lost
    said = capsys.readouterr().err
    assert "instructions of the form chat (messages). Layout: the tokenizer's chat template" in said
    assert f"({2 + lost} without an answer)" in said
    assert f"{told['cut']} conversations were longer than a row of 300 tokens, and cut" in said
    marks = store.marks(range(store.num_rows))
    assert marks is not None
    rows = store.rows(range(store.num_rows))
    assert marks.starts[:, 0].all()
    fill = ~marks.answers & (rows == 256)
    assert fill.mean() < 0.35
    store.verify()


def test_long_ones_are_left_out_where_that_is_asked_for(many: Path, tmp_path: Path) -> None:
    store = prepared(tmp_path, many, CHATML, seq_len=300, too_long="leave_out", on_bad_row="skip")
    whole = [each for each in expected_of(many, 10**6) if len(each[0]) <= 300]
    assert conversations(store) == whole
    assert store.index["instructions"]["too_long"] == len(expected_of(many, 10**6)) - len(whole) > 0


def test_held_out_conversations_are_whole_and_apart(many: Path, tmp_path: Path) -> None:
    store = prepared(tmp_path, many, CHATML, seq_len=300, heldout_sequences=3)
    ids, marks = store.heldout(), store.heldout_marks()
    assert ids.shape == (3, 300)
    assert marks is not None
    train = conversations(store)
    numbers = store.heldout_documents()
    held = []
    for number in np.unique(numbers[marks.answers]):
        here = numbers == number
        length = int(np.flatnonzero(marks.answers[here])[-1]) + 1
        held.append(ids[here][:length].tolist())
    everything = [whole for whole, _ in expected_of(many, 300)]
    assert len(held) > 3
    for each in held:  # a whole one, and none that is trained on
        (whole,) = {tuple(one) for one in everything if one[: len(each)] == each}
        assert list(whole) not in [ids for ids, _ in train]
    text = sum(
        len(message["content"].encode())
        for line in set(many.read_text().splitlines())
        for message in json.loads(line)["messages"]
        if message["role"] == "assistant"
    )
    assert 0 < store.heldout_bytes() < text


@pytest.mark.faults(2)
def test_cut_and_continued_the_store_is_the_same(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, name, value in ((shards, "SHARD_TOKENS", 900), (stream, "BATCH_CHARS", 300)):
        monkeypatch.setattr(target, name, value)
    monkeypatch.setattr(preparation, "SAVE_EVERY_S", 0.0)
    chat_tokenizer(CHATML).save_pretrained(tmp_path / "tokenizer")
    config = data_config(many, seq_len=300)
    prepare(config, tmp_path / "tokenizer", tmp_path / "uncut", visible=False)
    take, taken = preparation.Preparation._take_document, 0

    def failing(self: Any, text: str, ids: Any) -> None:
        nonlocal taken
        taken += 1
        if taken % 23 == 0:
            raise KeyboardInterrupt
        take(self, text, ids)

    monkeypatch.setattr(preparation.Preparation, "_take_document", failing)
    for _ in range(40):
        try:
            prepare(config, tmp_path / "tokenizer", tmp_path / "cut", visible=False)
        except KeyboardInterrupt:
            continue
        break
    assert taken > 120
    assert len(list((tmp_path / "cut").glob("train-*.marks"))) > 5
    assert content(tmp_path / "cut") == content(tmp_path / "uncut")


def test_a_flipped_mark_and_a_missing_file_are_found(many: Path, tmp_path: Path) -> None:
    path = prepared(tmp_path, many, CHATML, seq_len=300).path / "train-00000.marks"
    raw = bytearray(path.read_bytes())
    raw[7] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"train-00000\.marks is not as it was written"):
        TokenStore.open(path.parent).verify()
    path.write_bytes(raw[:-1])
    with pytest.raises(InputError, match=r"train-00000\.marks has \d+ bytes"):
        TokenStore.open(path.parent)


def test_another_template_makes_another_store(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "a.jsonl", [TURNS])
    prepared(tmp_path, path, CHATML)
    prepared(tmp_path, path, CHATML)
    with pytest.raises(UsageError, match="the chat template is another"):
        prepared(tmp_path, path, GENERATION["content"])


def test_text_has_no_marks(tmp_path: Path) -> None:
    store = prepared(tmp_path, write_source(tmp_path / "a.jsonl", documents(60)), CHATML, seq_len=32)
    assert not store.marked
    assert store.marks([0]) is None
    assert "instructions" not in store.index
    assert sorted(path.name for path in store.path.iterdir()) == ["index.json", "train-00000.bin"]


REFUSED = {  # rows that are left out, and what is said of them
    "a role that the template refuses": ([{"role": "tool", "content": "x"}, *TURNS[1:]], "is refused by the chat temp"),
    "an answer to nothing": ([{"role": "assistant", "content": "yo"}], "begins with an answer"),
    "a special token": (["what is </s>?", "yo"], r"spells out the special token </s>"),
    "no role": ([{"content": "x"}, "yo"], "has a message without 'role'"),
    "an answer that is null": (["x", {"role": "assistant", "content": None}], "holds null in 'content', not text"),
    "no answer": (["x"], "has no answer"),
    "a blank answer": (["x", " "], "has no answer"),
    "an answer beyond the row": (["x" * 300, "yo"], "has no answer within a row: raise data.seq_len"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_is_counted(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat, said = REFUSED[name]
    template = CHATML if name in ("an answer to nothing", "a special token") else INST
    path = write_chats(tmp_path / "a.jsonl", [chat, TURNS])
    store = prepared(tmp_path, path, template)
    assert len(conversations(store)) == 1
    assert store.index["skipped"]["bad_rows"] == 1
    assert f"a.jsonl, line 1 {said}" in capsys.readouterr().err
    alone = tmp_path / "alone"
    alone.mkdir()
    path = write_chats(tmp_path / "b.jsonl", [chat])
    with pytest.raises(InputError, match=f"gives no tokens.*line 1 {said}"):
        prepared(alone, path, template)


def test_a_template_that_marks_nothing_or_rewrites_is_named(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "a.jsonl", [TURNS])
    nothing = CHATML + "{% generation %}{% endgeneration %}"
    with pytest.raises(InputError, match=r"no token in the \{% generation %\} of the chat template: mend"):
        prepared(tmp_path, path, nothing)
    backwards = CHATML.replace("for m in messages", "for m in messages | reverse")
    with pytest.raises(InputError, match=r"does not tell: enclose what the assistant writes in \{% generation %\}"):
        prepared(tmp_path, path, backwards)
    shouting = CHATML.replace("m.content +", "m.content.upper() +")
    with pytest.raises(InputError, match="does not repeat as it is written"):
        prepared(tmp_path, path, shouting)


@pytest.mark.parametrize("options", [{"train_on_prompt": True}, {"too_long": "leave_out"}, {"apart": False}])
def test_options_of_instructions_are_none_of_text(options: dict[str, Any], tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.jsonl", documents(60))
    with pytest.raises(UsageError, match=f"data.{next(iter(options))} is of instructions, and .* holds texts"):
        prepared(tmp_path, source, **options)


def test_a_form_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = write_chats(tmp_path / "a.jsonl", [TURNS])
    with pytest.raises(InputError, match=r"no 'instruction' and 'output'.*they have messages.*data.form: alpaca reads"):
        prepared(tmp_path, source, form="alpaca")
    with pytest.raises(InputError, match="holds plain text, which has no columns"):
        prepared(tmp_path, write_source(tmp_path / "a.txt", documents(9)), form="chat")


def test_a_sample_has_whole_conversations(many: Path, tmp_path: Path) -> None:
    found = text_rows(str(many), chat_tokenizer(CHATML), 4, 300, framing=Framing())
    assert found.ids.shape == (4, 300)
    assert found.marks is not None
    expected = expected_of(many, 300)
    first = expected[0]
    assert found.ids[0, : len(first[0])].tolist() == first[0]
    assert (found.marks[0, : len(first[0])] & 1).astype(bool).tolist() == first[1]
    assert SPECIAL[1] == "<|im_end|>"


def test_several_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = data_config(write_chats(tmp_path / "a.jsonl", [TURNS]), heldout_sequences=0, seq_len=200)
    with pytest.raises(UsageError, match="has the chat templates rag, tool_use and no default one"):
        prepare(config, tmp_path / "tokenizer", tmp_path / "store", visible=False)
