"""One term for one thing: words and phrases that the project does not use, and the standard term for each."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What is not written, whole words whatever their case, and what is written instead.
TERMS = {
    r"pictures?|photographs?|photos?": "image",
    r"articles of clothing|clothes": "Fashion-MNIST",
    r"in (gray|color)": "grayscale or RGB",
    r"strange (inputs?|data|rows?|images?|samples?)": "out-of-distribution (OOD) inputs",
    r"cuts? of the data": "split",
    r"arms?": "method, or control",
    r"other init|another init": "second initialization",
    r"(?<![.+'\"`])(?-i:[Tt]rainings)(?![.:'\"`])": "training runs",  # the configuration key `trainings` aside
    r"findings?": "predictions",
    r"somebody corrects?|somebody's corrections?": "interventions",
    r"goes along with|turns? round|turned round": "spuriously correlated with the class; the correlation flips",
    r"charg(e|es|ed|ing)": "penalize, penalty",
    r"leaves behind": "records",
    r"pass as they are": "is the identity in the forward pass",
    r"behind (a|an|the|each|every|this|that|it|its|them|other|another|several|n)": "after",
    r"whole numbers?": "integer",
    r"turned axes|axes (are )?turned": "transposed",
    r"of the batch of all ranks": "over the global batch",
    r"numbers to predict": "regression targets",
    r"starts? anew|anew": "re-initialized, or restarts",
    r"strong(er)? attacks?": "the attack's name",
    r"(?<!make )(?<!makes )sure|unsure|surer|surest": "confident, or uncertain",
    r"told apart by": "detected by",
    r"fine dust|bicycles hired": "PM2.5, or rentals",
    r"luck": "seed variance, or noise between initializations",
    # British spelling
    r"grey\w*": "gray",
    r"\w*colour\w*": "color",
    r"cent(re|res|red|ring)": "center",
    r"\w*behaviour\w*|favour\w*|neighbour\w*|honour\w*": "-or",
    r"(label|model|cancel|travel|signal)l(ed|ing)": "one l",
    r"(?!aris)\w*(al|ar|or|im|er|min|ni|ym|og|bil|form|et|tim|mat|ret|nt|ctor)is(e|es|ed|ing|er|ation|ations)": "-ize",
    r"analys(e|ed|ing)|catalogue|artefacts?|learnt": "American spelling",
}


def files():
    """Lists the files that people read, with their lines; of the tests the names of files and functions alone."""
    for folder, pattern in (("ibreg", "*.py"), ("recipes", "*.py"), ("configs", "*.yaml"), ("benchmarks", "*.py")):
        for path in sorted((ROOT / folder).rglob(pattern)):
            yield path, list(enumerate(path.read_text().splitlines(), 1))
    yield ROOT / "README.md", list(enumerate((ROOT / "README.md").read_text().splitlines(), 1))
    for path in sorted((ROOT / "tests").rglob("*.py")):
        named = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        yield path, [(1, path.stem.replace("_", " ")), *((node.lineno, node.name.replace("_", " ")) for node in named)]


FILES = list(files())


@pytest.mark.parametrize("term", TERMS)
def test_a_term_has_its_standard_form(term):
    pattern = re.compile(rf"\b(?:{term})\b", re.IGNORECASE)
    offences = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r} in {line.strip()!r}"
        for path, lines in FILES
        for number, line in lines
        if (match := pattern.search(line))
    ]
    assert not offences, f"write {TERMS[term]} instead:\n" + "\n".join(offences)
