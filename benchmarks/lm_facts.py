"""Facts in a small language model: who learns them, and what becomes of an edit.

    python benchmarks/lm_facts.py --work runs/lm-facts
    python benchmarks/lm_facts.py --work runs/lm-facts --small        # does it run? its figures mean nothing

256 facts about entities of one token and 256 about pairs of tokens (16 x 16, so that no token alone tells the answer)
stand in templated sentences inside text of Python's standard library; the answer is one of 32 words. Each fact is
trained in seven of eight templates; the eighth is the unseen one. A dense decoder, one with Engram and one with STEM in
half of the blocks are trained on the same tokens, and asked by the likeliest next token of all.

Edits: an entity of one token reads another's STEM rows at its position (the answer must become the other's), a third
entity's rows as control, another fact asked for later in the same prompt; all of it written to the tables and taken
back. New answers are written into the Engram rows at a prompt's end, and asked for in another template.

Goes on where it was stopped. Writes benchmarks/results/lm_facts.json.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import lm as comparison
import lm_facts_report as report_of
import records

TEMPLATES = (
    "the value of{E} is{A}",
    "we say that{E} means{A}",
    "in this file{E} gives{A}",
    "note that{E} becomes{A}",
    "every{E} returns{A}",
    "look up{E} for{A}",
    "as a rule{E} has{A}",
    "the name{E} and{A}",
)
NUM_ANSWERS = 32
MODEL = {"dim": 96, "num_layers": 4, "num_heads": 4, "hidden": 256, "context": 128}
ARMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "Engram": {"memory": comparison.ENGRAM},
    "STEM 1/2": {"memory": {"kind": "stem", "layers": [1, 3]}, "model": {"embedding_dropout": 0.5}},
}
RATES = {"dense": (0.004, 0.8), "Engram": (0.004, 0.8), "STEM 1/2": (0.004, 0.8)}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """An entity and its answer.

    Args:
        entity: with a space before each word.
        answer: one word, with a space before it.
        unseen: the template that it is not trained in.
    """

    entity: str
    answer: str
    unseen: int

    def sentence(self, template: int) -> str:
        """What is trained."""
        return TEMPLATES[template].format(E=self.entity, A=self.answer)

    def prompt(self, template: int) -> str:
        """What is asked."""
        return TEMPLATES[template].format(E=self.entity, A="")


def make_facts(words: Sequence[str], *, count: int, seed: int) -> tuple[list[Fact], list[Fact]]:
    """Facts about single words, and about pairs of words.

    Args:
        words: that are one token each with the space before them.
        count: of each kind; a square number.
        seed: of the draws.
    """
    draw = random.Random(seed)
    side = round(count**0.5)
    needed = NUM_ANSWERS + count + 2 * side
    if len(words) < needed:
        raise SystemExit(
            f"the tokenizer has {len(words)} whole words, and {needed} are needed; use a larger vocabulary"
        )
    drawn = draw.sample(sorted(words), needed)
    answers, rest = drawn[:NUM_ANSWERS], drawn[NUM_ANSWERS:]
    singles, firsts, seconds = rest[:count], rest[count : count + side], rest[count + side :]
    pairs = [first + second for first in firsts for second in seconds]

    def facts(entities: Sequence[str]) -> list[Fact]:
        return [
            Fact(entity=entity, answer=draw.choice(answers), unseen=place % len(TEMPLATES))
            for place, entity in enumerate(entities)
        ]

    return facts(singles), facts(pairs)


def documents_of(facts: Sequence[Fact], *, repeats: int, seed: int) -> list[str]:
    """The trained sentences in documents of 20, in a mixed order."""
    draw = random.Random(seed)
    sentences = [
        fact.sentence(template)
        for fact in facts
        for template in range(len(TEMPLATES))
        if template != fact.unseen
        for _ in range(repeats)
    ]
    draw.shuffle(sentences)
    return ["\n".join(sentences[start : start + 20]) + "\n" for start in range(0, len(sentences), 20)]


def prepare(args: argparse.Namespace) -> tuple[list[Fact], list[Fact], int]:
    """The corpus with its facts, made if it is not there, and the tokens of one reading."""
    from embank.pipelines.lm.config import parse_lm_config
    from embank.pipelines.lm.corpus import Document, read_documents, split_documents
    from embank.pipelines.lm.tokenizer import train_tokenizer
    from embank.pipelines.lm.tokens import Corpus, write_corpus

    folder = args.work / "corpus"
    config = parse_lm_config({"corpus": corpus_section(args)}).corpus
    split = split_documents(read_documents(None), ratios=config.ratios, seed=config.seed)
    tokenizer = train_tokenizer((d.text for d in split["train"]), vocab_size=config.vocab_size)
    tokens = [str(tokenizer.id_to_token(id)) for id in range(tokenizer.get_vocab_size())]
    words = [f" {token[1:]}" for token in tokens if re.fullmatch("Ġ[a-z]{3,}", token)]
    single, pairs = make_facts(words, count=args.facts, seed=0)
    if not folder.exists():
        taken, text = 0, []
        for document in split["train"]:
            if taken > 3.2 * args.text_tokens:  # bytes; a token of code has some three
                break
            text.append(document)
            taken += len(document.text)
        written = documents_of(single, repeats=args.repeats, seed=0)
        written += documents_of(pairs, repeats=args.pair_repeats, seed=1)
        text += [Document(name=f"facts#{number}", text=document) for number, document in enumerate(written)]
        random.Random(0).shuffle(text)
        split["train"] = text
        write_corpus(split, config, folder, tokenizer=tokenizer)
    return single, pairs, int(Corpus(folder).facts["splits"]["train"]["tokens"])


def corpus_section(args: argparse.Namespace) -> dict[str, Any]:
    """The corpus section of all runs."""
    return {"vocab_size": args.vocab_size, "folder": str((args.work / "corpus").resolve())}


def train(args: argparse.Namespace, arm: str, seed: int, *, num_tokens: int) -> Path:
    """A run of an arm, or the one that is there."""
    from embank.pipelines.lm.config import parse_lm_config
    from embank.pipelines.lm.trainer import LmTrainer
    from embank.pipelines.runs.folder import RunFolder

    lr, row_lr = RATES[arm]
    small = {"dim": 16, "hidden": 32, "context": 32} if args.small else {}
    batch_size = 4 if args.small else 16
    raw = {
        "corpus": corpus_section(args),
        "model": {**MODEL, **small, **ARMS[arm].get("model", {})},
        "memory": ARMS[arm].get("memory", {}),
        "train": {
            "tokens": max(1, args.epochs * (num_tokens - 1)),
            "batch_size": batch_size,
            "lr": lr,
            "row_lr": row_lr,
            "seed": seed,
            "eval_tokens": args.eval_tokens,
            "num_threads": args.threads,
        },
    }
    run = args.work / "runs" / f"{arm.replace('/', '-').replace(' ', '-').lower()}-seed{seed}"
    LmTrainer(parse_lm_config(raw), run).train(resume=RunFolder(run).is_run)
    return run


class Asked:
    """A trained model that is asked for facts.

    Args:
        lm: as `opened_lm` gives it.
    """

    def __init__(self, lm: Any) -> None:
        self.model, self.tokenizer = lm.model, lm.corpus.tokenizer

    def ids(self, text: str) -> list[int]:
        """Of a text at the beginning of a document."""
        from embank.pipelines.lm.tokenizer import encode

        return [0, *encode(self.tokenizer, text)]

    def token(self, word: str) -> int:
        """The one token of a word."""
        (token,) = self.ids(word)[1:]
        return token

    @torch.no_grad()
    def likeliest(self, prompts: Sequence[Sequence[int]], *, rows: Any = None) -> list[int]:
        """The likeliest token after each prompt; one by one where rows are given, else by their lengths."""
        if rows is not None:
            return [int(self._next(torch.tensor([list(p)]), r)[0]) for p, r in zip(prompts, rows, strict=True)]
        found: dict[int, int] = {}
        for length in sorted({len(prompt) for prompt in prompts}):
            places = [place for place, prompt in enumerate(prompts) if len(prompt) == length]
            answers = self._next(torch.tensor([list(prompts[place]) for place in places]), None)
            found |= dict(zip(places, answers.tolist(), strict=True))
        return [found[place] for place in range(len(prompts))]

    def _next(self, ids_BT: torch.Tensor, rows: Any) -> torch.Tensor:
        return self.model.logits(self.model.hidden(ids_BT, rows=rows)[:, -1]).argmax(-1)

    def recall(self, facts: Sequence[Fact], *, seen: bool) -> float:
        """Share of facts that are answered, in all trained templates or in the unseen one."""
        asked = [
            (fact, template)
            for fact in facts
            for template in range(len(TEMPLATES))
            if (template != fact.unseen) == seen
        ]
        answers = self.likeliest([self.ids(fact.prompt(template)) for fact, template in asked])
        right = [answer == self.token(fact.answer) for (fact, _), answer in zip(asked, answers, strict=True)]
        return sum(right) / len(right)

    def edited(self, prompt: Sequence[int], source: Fact, target: Fact) -> Any:
        """What STEM layers read of a prompt where one entity reads another's rows."""
        from embank.tables.memory import PositionEdit

        edit = PositionEdit.of_phrase(
            torch.tensor([list(prompt)]), source=[self.token(source.entity)], target=[self.token(target.entity)]
        )
        return edit.look_up(self.model.tables)["stem"]


def edits(asked: Asked, facts: Sequence[Fact], *, seed: int) -> dict[str, float]:
    """How edits of STEM rows go: see the head of this file."""
    draw, step = random.Random(seed), len(TEMPLATES)
    found: dict[str, list[bool]] = {name: [] for name in ("seen", "unseen", "control", "other fact kept")}
    for place, fact in enumerate(facts):
        alike = [other for other in facts[place % step :: step] if other.answer != fact.answer]  # one unseen template
        target = draw.choice(alike)
        control = draw.choice([f for f in facts if f.answer not in (fact.answer, target.answer)])
        wanted = asked.token(target.answer)
        trained = draw.choice([t for t in range(step) if t != fact.unseen])
        for name, template, read in (
            ("seen", trained, target),
            ("unseen", fact.unseen, target),
            ("control", trained, control),
        ):
            prompt = asked.ids(fact.prompt(template))
            answer = asked.likeliest([prompt], rows=[asked.edited(prompt, fact, read)])[0]
            found[name].append(answer == wanted)
        other = draw.choice([f for f in facts if f.entity not in (fact.entity, target.entity)])
        about = draw.choice([t for t in range(step) if t != other.unseen])
        both = asked.ids(f"{fact.sentence(trained)}\n{other.prompt(about)}")
        right = asked.token(other.answer)
        if asked.likeliest([both])[0] == right:
            answer = asked.likeliest([both], rows=[asked.edited(both, fact, target)])[0]
            found["other fact kept"].append(answer == right)
    return {name: sum(values) / max(1, len(values)) for name, values in found.items()}


def undone(asked: Asked, facts: Sequence[Fact]) -> bool:
    """Whether rows that were swapped for all texts come back bit for bit."""
    from embank.tables.memory import EditSession

    before = {name: weight.clone() for name, weight in asked.model.row_weights().items()}
    session = EditSession(asked.model.tables)
    for first, second in zip(facts[:-1], facts[1:], strict=True):
        session.swap([asked.token(first.entity)], [asked.token(second.entity)])
    changed = any(not torch.equal(weight, before[name]) for name, weight in asked.model.row_weights().items())
    session.undo_all()
    return changed and all(torch.equal(w, before[name]) for name, w in asked.model.row_weights().items())


def written(asked: Asked, facts: Sequence[Fact], *, count: int, seed: int) -> dict[str, float]:
    """How new answers that are written into Engram rows are recalled: at the prompt, in another template, beside
    others."""
    from embank.pipelines.lm.editing import write_fact

    draw = random.Random(seed)
    chosen = draw.sample(list(facts), count)
    others = [fact for fact in facts if fact not in chosen][: 4 * count]
    kept_before = asked.recall(others, seen=True)
    success, paraphrase = [], []
    for fact in chosen:
        answer = draw.choice([f.answer for f in facts if f.answer != fact.answer])
        template, another = draw.sample([t for t in range(len(TEMPLATES)) if t != fact.unseen], 2)
        write_fact(asked.model, asked.tokenizer, prompt=fact.prompt(template), answer=answer, most=0)
        prompts = [asked.ids(fact.prompt(t)) for t in (template, another)]
        first, second = (token == asked.token(answer) for token in asked.likeliest(prompts))
        success.append(first)
        paraphrase.append(second)
    return {
        "success": sum(success) / count,
        "in another template": sum(paraphrase) / count,
        "recall of others before": kept_before,
        "recall of others after": asked.recall(others, seen=True),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and asks."""
    from embank.pipelines.lm.opened import opened_lm

    single, pairs, num_tokens = prepare(args)
    runs = []
    for seed in args.seeds:
        for arm in ARMS:
            with opened_lm(train(args, arm, seed, num_tokens=num_tokens)) as lm:
                asked = Asked(lm)
                entry: dict[str, Any] = {"arm": arm, "seed": seed}
                for name, facts in (("one token", single), ("two tokens", pairs)):
                    entry[name] = {
                        "trained": asked.recall(facts, seen=True),
                        "unseen": asked.recall(facts, seen=False),
                    }
                if arm == "STEM 1/2":
                    entry["edits"] = edits(asked, single, seed=seed) | {"undone": undone(asked, single)}
                if arm == "Engram":
                    entry["written"] = written(asked, pairs, count=min(16, len(pairs) // 8), seed=seed)
            runs.append(entry)
            print(json.dumps(entry), flush=True)
    return {
        "facts": args.facts,
        "templates": TEMPLATES,
        "repeats": args.repeats,
        "pair_repeats": args.pair_repeats,
        "epochs": args.epochs,
        "tokens_of_one_reading": num_tokens,
        "rates": RATES,
        "runs": runs,
        "bars": report_of.bars(runs),
    }


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/lm-facts"), help="folder of runs, kept for going on")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--facts", type=int, default=256, help="of each kind, a square number")
    parser.add_argument("--repeats", type=int, default=4, help="of each sentence about one token")
    parser.add_argument("--pair-repeats", type=int, default=2, help="of each sentence about a pair of tokens")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--text-tokens", type=int, default=150_000, help="tokens of other text, roughly")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--eval-tokens", type=int, default=65_536)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a small decoder, for a trial")
    records.argument(parser)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    args = arguments(words)
    args.work.mkdir(parents=True, exist_ok=True)
    run = records.begin(settings={"small": args.small, "facts": args.facts, "seeds": args.seeds})
    run.detail = measure(args)
    run.records = report_of.recorded(run.detail)
    path = records.save("lm_facts", run, title=report_of.TITLE, about=report_of.ABOUT, out=args.out)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
