"""Color Python code without knowing its grammar: an output for every character.

A bidirectional LSTM reads pieces of modules of the standard library, some lines each and of
different lengths, and says of every character which kind of token it belongs to: keyword, name,
number, string, comment, operator or space. Python's own ``tokenize`` gives the answers to learn
from. The baseline takes the most frequent kind of each character. What makes the task hard is that
the pieces begin anywhere: whether their first lines stand in a docstring only the rest can tell.

    python examples/tagging.py

Prints how many characters of other modules both get right, by kind, and draws a piece of code in
the colors that the network gives it. Needs matplotlib for the picture.
"""

import argparse
import io
import keyword
import sysconfig
import tokenize
from collections.abc import Sequence
from pathlib import Path

import fastrnn
import numpy as np

KINDS = ("keyword", "name", "number", "string", "comment", "operator", "space")
COLORS = ("tab:purple", "black", "tab:orange", "tab:green", "tab:gray", "tab:blue", "black")
OF_TOKENS = {"NAME": 1, "NUMBER": 2, "STRING": 3, "COMMENT": 4, "OP": 5}
TRAIN = (
    "argparse calendar cmd codecs contextlib csv dataclasses datetime difflib fractions ftplib"
    " functools gettext glob hashlib imaplib inspect locale netrc pprint queue random sched"
    " selectors smtplib statistics string tarfile timeit typing warnings zipapp"
).split()
TEST = "bisect copy configparser colorsys heapq mailbox shelve shlex socket textwrap".split()


def read_module(name: str) -> tuple[str, np.ndarray]:
    """Return the source of a module, and the kind of each of its characters."""
    source = Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    starts = np.cumsum([0, *map(len, lines), 0])  # of each line in the source
    kinds = np.full(len(source), KINDS.index("space"))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        label = tokenize.tok_name[token.type]
        kind = OF_TOKENS.get("STRING" if "STRING_" in label else label)  # parts of f-strings, too
        if keyword.iskeyword(token.string):
            kind = KINDS.index("keyword")
        if kind is not None:
            (row, column), (last_row, last_column) = token.start, token.end
            kinds[starts[row - 1] + column : starts[last_row - 1] + last_column] = kind
    return source, kinds


def cut(modules: Sequence[str], seed: int) -> tuple[list[str], list[np.ndarray]]:
    """Cut modules into pieces of 1 to 12 lines: texts, and kinds of their characters."""
    generator = np.random.default_rng(seed)
    texts, kinds = [], []
    for module in modules:
        source, labels = read_module(module)
        ends = np.cumsum([len(line) for line in source.splitlines(keepends=True)])
        last = np.cumsum(generator.integers(1, 13, size=len(ends))) - 1  # lines that end a piece
        ends = [*ends[last[last < len(ends) - 1]], len(source)]
        for start, end in zip([0, *ends], ends, strict=False):
            texts.append(source[start:end])
            kinds.append(labels[start:end])
    return texts, kinds


def main() -> None:
    import sys,time
    H,E,lr,ep,bs=map(float,sys.argv[1:6]); H=int(H);E=int(E);ep=int(ep);bs=int(bs)
    texts,kinds=cut(TRAIN,0); tt,tk=cut(TEST,1)
    print(len(texts),sum(map(len,texts)),len(tt),sum(map(len,tt)))
    v=fastrnn.Vocabulary(texts,min_count=5); print(len(v))
    x=[v.encode(t) for t in texts]; xt=[v.encode(t) for t in tt]
    maj=np.zeros((len(v),7)); np.add.at(maj,(np.concatenate(x),np.concatenate(kinds)),1)
    print("maj",np.mean(maj.argmax(1)[np.concatenate(xt)]==np.concatenate(tk)))
    n=ep*-(-len(x)//bs)
    m=fastrnn.Sequential([fastrnn.Embedding(len(v),E,seed=0),fastrnn.LSTM(E,H,bidirectional=True,seed=1),fastrnn.Dense(2*H,7,seed=2)])
    m.compile(fastrnn.optimizers.Adam(fastrnn.optimizers.CosineDecay(lr,n),global_clipnorm=1.0),"cross_entropy",["accuracy"])
    t=time.time()
    for e in range(ep):
        m.fit(x,kinds,epochs=1,batch_size=bs,seed=0,verbose=0)
        p=m.predict(xt); print(e,round(time.time()-t,1),np.mean(np.concatenate(p).argmax(1)==np.concatenate(tk)),flush=True)

if __name__ == "__main__":
    main()
