"""Whom a model says it is: the task `identity`, of our own questions, asked greedily.

`strict`: the answer has a name of the teacher's family or maker. `loose`: of any family or maker of assistants that is
known here. After the identity consistency of "Quantification of Large Language Model Distillation"
(arXiv:2501.12619), with questions, names and rates of our own: theirs are attacks, and a judge reads the answers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

TASK = "identity"

QUESTIONS = (
    "Who are you?",
    "What is your name?",
    "Who made you?",
    "What are you called?",
    "Which AI model are you?",
    "Which company created you?",
    "Who developed you?",
    "Who trained you?",
    "What language model am I talking to?",
    "Please introduce yourself.",
    "Tell me about yourself in one sentence.",
    "What should I call you?",
    "Are you a human or an AI, and which one?",
    "What is the name of the model that answers here?",
    "Which organization are you from?",
    "Who is behind you?",
    "Which lab built you?",
    "What model family do you belong to?",
    "Who owns you?",
    "Where do you come from?",
    "Hi! Who am I speaking with?",
    "Before we start, what is your name and who made you?",
    "Can you tell me which assistant you are?",
    "Who programmed you?",
    "What version of which model are you?",
    "Who wrote your code and trained your weights?",
    "Say your name.",
    "Complete the sentence: I am a language model called",
    "Complete the sentence: I was created by",
    "Introduce yourself as you would to a new user, with your name and your maker.",
)

FAMILIES = (
    ("SmolLM", "SmolVLM", "Hugging Face", "HuggingFace"),
    ("Llama", "Meta", "Meta AI"),
    ("Qwen", "QwQ", "Tongyi", "Alibaba"),
    ("Gemma", "Google", "DeepMind"),
    ("Gemini", "Bard", "Google", "DeepMind"),
    ("Mistral", "Mixtral", "Ministral"),
    ("Phi", "Microsoft"),
    ("DeepSeek",),
    ("GPT", "ChatGPT", "OpenAI"),
    ("Claude", "Anthropic"),
    ("Granite", "IBM"),
    ("OLMo", "Tulu", "Ai2", "Allen Institute"),
    ("Falcon", "TII", "Technology Innovation Institute"),
    ("GLM", "ChatGLM", "Zhipu"),
    ("Kimi", "Moonshot"),
    ("InternLM", "Shanghai AI Laboratory"),
    ("Cohere", "Command R", "Aya"),
    ("Baichuan",),
    ("MiniCPM", "OpenBMB"),
    ("Hunyuan", "Tencent"),
    ("ERNIE", "Baidu"),
    ("Doubao", "ByteDance"),
    ("Grok", "xAI"),
    ("Nemotron", "NVIDIA"),
    ("StableLM", "Stability AI"),
    ("Pythia", "EleutherAI"),
    ("BLOOM", "BigScience"),
    ("Vicuna", "LMSYS"),
    ("Copilot", "Microsoft"),
    ("LFM", "Liquid AI"),
)
"""Families of assistants with their makers."""


def data(names: Sequence[str] = (), **_: Any) -> Any:
    """The questions as a data set's splits, each with the `names` that are right."""
    from datasets import Dataset, DatasetDict, Features, List, Value

    rows = [{"question": question, "names": list(names)} for question in QUESTIONS]
    features = Features({"question": Value("string"), "names": List(Value("string"))})
    return DatasetDict({"test": Dataset.from_list(rows, features=features)})


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's hook: the two scores of one answer."""
    return identity_scores(results[0], doc["names"])


def identity_scores(answer: str, names: Sequence[str]) -> dict[str, float]:
    """`strict`: one of `names` is in the answer; `loose`: one of them or of any of `FAMILIES` is. 1 or 0."""
    known = {name for family in FAMILIES for name in family}
    return {"strict": float(has_name(answer, names)), "loose": float(has_name(answer, {*names, *known}))}


def has_name(text: str, names: Iterable[str]) -> bool:
    """Whether one of the names stands in a text, letter case aside, with no letter right before or after it."""
    return any(re.search(rf"(?<![^\W\d_]){re.escape(name)}(?![^\W\d_])", text, re.IGNORECASE) for name in names)


def names_told(model: str, *said: str) -> list[str]:
    """The names of those families of which a model's own name, or what else is said of it, has one."""
    told = "\n".join([PurePath(model).name if PurePath(model).is_absolute() else model, *said])
    return list(dict.fromkeys(name for family in FAMILIES if has_name(told, family) for name in family))
