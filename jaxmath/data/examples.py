"""Worked examples to show before a question: our own by subject, or drawn from a training file.

The examples here were written for this project and are nobody's published prompts: published
few-shot scores used other examples, and may differ from ours for that alone. Each ends in a box, so
that a base model learns from them where its answer belongs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from types import MappingProxyType

import numpy as np

from jaxmath.data import records
from jaxmath.data.prompts import Example


@dataclasses.dataclass(frozen=True)
class FewShotConfig:
    """Examples drawn once from a file of worked solutions, the same for every question.

    source: a file, folder, glob or hub id as in `records.DataConfig`, with its split and name.
    num: how many. seed: of the draw.
    """

    source: str
    num: int
    split: str = "train"
    name: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.num < 1:
            raise ValueError(f"num is {self.num}; expected at least 1, or no few_shot at all")


def draw(config: FewShotConfig, asked: Iterable[str] = ()) -> tuple[Example, ...]:
    """`config.num` rows that have a solution and are not among the questions `asked`.

    A solution without a box gets a last sentence with the answer in one.

    Raises:
      ValueError: too few such rows.
    """
    problems = records.read_problems(
        records.DataConfig(config.source, split=config.split, name=config.name)
    )
    asked = {_squeezed(question) for question in asked}
    usable = [p for p in problems if p.solution and _squeezed(p.problem) not in asked]
    if len(usable) < config.num:
        raise ValueError(
            f"{config.source}: {len(usable)} of {len(problems)} rows have a solution and are not "
            f"asked themselves, few_shot.num is {config.num}; lower it or name another file"
        )
    places = np.random.default_rng(config.seed).permutation(len(usable))[: config.num]
    return tuple(_example(usable[i]) for i in places)


def _squeezed(question: str) -> str:
    return "".join(question.split())


def _example(problem: records.Problem) -> Example:
    solution = problem.solution.strip()
    if "\\boxed" not in solution:
        solution += f"\nThe answer is $\\boxed{{{problem.answer}}}$."
    return Example(problem.problem.strip(), solution)


_WORD = (
    Example(
        "A bakery fills 14 trays with 12 rolls each and sells 125 rolls before noon. How many rolls"
        " does it have left?",
        "The bakery makes 14 × 12 = 168 rolls. After the morning 168 - 125 = 43 are left. The"
        " answer is $\\boxed{43}$.",
    ),
    Example(
        "Nadia puts aside 18 dollars every week. After 9 weeks she buys a lamp for 47 dollars. How"
        " many dollars does she still have?",
        "In 9 weeks she saves 9 × 18 = 162 dollars. The lamp leaves her 162 - 47 = 115 dollars. The"
        " answer is $\\boxed{115}$.",
    ),
    Example(
        "Tom's book has 240 pages. He reads a third of it on Saturday and 35 pages on Sunday. How"
        " many pages remain?",
        "On Saturday he reads 240 / 3 = 80 pages, so over the two days 80 + 35 = 115. There remain"
        " 240 - 115 = 125 pages. The answer is $\\boxed{125}$.",
    ),
    Example(
        "A train has 6 carriages of 48 seats, and three quarters of all seats are taken. How many"
        " seats are free?",
        "The train has 6 × 48 = 288 seats. One quarter is free, that is 288 / 4 = 72. The answer is"
        " $\\boxed{72}$.",
    ),
    Example(
        "How many pieces of 60 centimetres can be cut from a rope that is 9 metres long?",
        "The rope is 9 × 100 = 900 centimetres long, which gives 900 / 60 = 15 pieces. The answer"
        " is $\\boxed{15}$.",
    ),
    Example(
        "Ivan's age is 4 years more than twice his sister's, and their ages add up to 31. How old"
        " is Ivan?",
        "If the sister is s years old, Ivan is 2s + 4, and together 3s + 4 = 31. So 3s = 27 and"
        " s = 9, and Ivan is 2 × 9 + 4 = 22. The answer is $\\boxed{22}$.",
    ),
    Example(
        "Coffee costs 8.00 dollars for 500 grams in one shop and 10.50 dollars for 750 grams in"
        " another. By how many cents are 100 grams cheaper in the second shop?",
        "In the first shop 100 grams cost 800 / 5 = 160 cents. In the second 750 grams cost 1050"
        " cents, so 100 grams cost 1050 / 7.5 = 140 cents. The difference is 160 - 140 = 20 cents."
        " The answer is $\\boxed{20}$.",
    ),
    Example(
        "A pump brings 15 litres a minute into a tank of 180 litres, while 3 litres a minute leak"
        " out of it. After how many minutes is the empty tank full?",
        "Each minute the tank gains 15 - 3 = 12 litres, so it is full after 180 / 12 = 15 minutes."
        " The answer is $\\boxed{15}$.",
    ),
)

_COMPETITION = (
    Example(
        "Find the sum of all integers $n$ for which $n^2 - 7n + 10$ is negative.",
        "We factor $n^2 - 7n + 10 = (n - 2)(n - 5)$. The product is negative exactly for"
        " $2 < n < 5$, that is for $n = 3$ and $n = 4$. Their sum is $\\boxed{7}$.",
    ),
    Example(
        "Simplify $\\dfrac{\\sqrt{50} - \\sqrt{8}}{\\sqrt{6}}$ and rationalise the denominator.",
        "Since $\\sqrt{50} = 5\\sqrt{2}$ and $\\sqrt{8} = 2\\sqrt{2}$, the numerator is"
        " $3\\sqrt{2}$. Dividing by $\\sqrt{6} = \\sqrt{2}\\sqrt{3}$ leaves"
        " $\\frac{3}{\\sqrt{3}} = \\boxed{\\sqrt{3}}$.",
    ),
    Example(
        "A red and a blue fair die are thrown. With what probability do they show an odd product?"
        " Give a common fraction.",
        "The product is odd only if both numbers are. Each die shows an odd number with probability"
        " $\\frac{1}{2}$, so the answer is $\\frac{1}{2} \\cdot \\frac{1}{2} ="
        " \\boxed{\\frac{1}{4}}$.",
    ),
    Example(
        "The legs of a right triangle measure 9 and 12. What is the radius of the circle inscribed"
        " in it?",
        "The hypotenuse is $\\sqrt{81 + 144} = 15$. The area is $\\frac{1}{2} \\cdot 9 \\cdot 12 ="
        " 54$, and it also equals the radius times half of the perimeter $9 + 12 + 15 = 36$. So the"
        " radius is $\\frac{54}{18} = \\boxed{3}$.",
    ),
    Example(
        "How many of the positive divisors of $1400$ are even?",
        "We have $1400 = 2^3 \\cdot 5^2 \\cdot 7$. An even divisor has a factor $2^a$ with"
        " $1 \\le a \\le 3$, a factor $5^b$ with $0 \\le b \\le 2$ and a factor $7^c$ with"
        " $0 \\le c \\le 1$. That makes $3 \\cdot 3 \\cdot 2 = \\boxed{18}$.",
    ),
)

_COLLEGE = (
    Example(
        "Evaluate $\\int_0^2 (3x^2 - 2x)\\,dx$.",
        "An antiderivative is $x^3 - x^2$. Between the limits it grows from $0$ to $8 - 4$, so the"
        " integral is $\\boxed{4}$.",
    ),
    Example(
        "Find the larger eigenvalue of $\\begin{pmatrix} 4 & 1 \\\\ 2 & 3 \\end{pmatrix}$.",
        "The trace is $7$ and the determinant $12 - 2 = 10$, so the eigenvalues solve"
        " $\\lambda^2 - 7\\lambda + 10 = 0$. They are $2$ and $5$, and the larger is"
        " $\\boxed{5}$.",
    ),
    Example(
        "Solve $y' = 3y$ with $y(0) = 2$.",
        "All solutions are $y = Ce^{3x}$, and $y(0) = C = 2$. Hence $\\boxed{y = 2e^{3x}}$.",
    ),
    Example(
        "Find the sample variance of the data 4, 7, 9, 12.",
        "The mean is $32 / 4 = 8$ and the deviations are $-4, -1, 1, 4$. Their squares add up to"
        " $34$, which is divided by $4 - 1$: $\\boxed{\\frac{34}{3}}$.",
    ),
)

_SCIENCE = (
    Example(
        "A car at $20 \\mathrm{~m/s}$ brakes with a constant deceleration of"
        " $4 \\mathrm{~m/s^2}$. How many metres does it travel before it stands still?",
        "From $v^2 = 2as$ we get $s = \\frac{20^2}{2 \\cdot 4} = \\boxed{50}$ metres.",
    ),
    Example(
        "What is the energy in $\\mathrm{eV}$ of a photon whose wavelength is $500$ nm? Use"
        " $hc = 1240 \\mathrm{~eV \\cdot nm}$.",
        "The energy is $E = hc/\\lambda = 1240 / 500 = \\boxed{2.48}$ eV.",
    ),
    Example(
        "One mole of an ideal gas at temperature $T$ doubles its volume at constant temperature."
        " Give the work that it does, with $R$ for the gas constant.",
        "With $p = RT/V$ the work is $\\int_{V}^{2V} \\frac{RT}{V'}\\,dV' = \\boxed{RT \\ln 2}$.",
    ),
    Example(
        "Two equal stars differ only in their distance from us, which is ten times as large for one"
        " as for the other. By how many magnitudes does the farther one look fainter?",
        "Its flux is smaller by a factor of $10^2 = 100$, which is"
        " $2.5 \\log_{10} 100 = \\boxed{5}$ magnitudes.",
    ),
)

_CHOICE = (
    Example(
        "With 20% taken off, a shirt costs $40. What did it cost before?\n"
        "Answer Choices: (A) $44 (B) $48 (C) $50 (D) $52 (E) $60",
        "The shirt costs 80% of the old price, so the old price was 40 / 0.8 = 50 dollars. The"
        " answer is $\\boxed{C}$.",
    ),
    Example(
        "If $3x - 5 = 16$, what is $x + 1$?\nAnswer Choices: (A) $7$ (B) $8$ (C) $9$ (D) $10$",
        "From $3x = 21$ we get $x = 7$, hence $x + 1 = 8$. The answer is $\\boxed{B}$.",
    ),
    Example(
        "What is the slope of the line through $(1, 2)$ and $(4, 11)$?\n"
        "Answer Choices: (A) $\\frac{1}{3}$ (B) $\\frac{9}{4}$ (C) $2$ (D) $3$",
        "The slope is $\\frac{11 - 2}{4 - 1} = 3$. The answer is $\\boxed{D}$.",
    ),
    Example(
        "One painter needs 6 hours for a fence, another 12 hours. How long do they need together?\n"
        "Answer Choices: (A) 4 hours (B) 5 hours (C) 8 hours (D) 9 hours (E) 18 hours",
        "In one hour they paint 1/6 + 1/12 = 1/4 of the fence, so they need 4 hours. The answer is"
        " $\\boxed{A}$.",
    ),
    Example(
        "The mean of five numbers is 12, and four of them add up to 46. What is the fifth?\n"
        "Answer Choices: (A) 8 (B) 10 (C) 11 (D) 13 (E) 14",
        "All five add up to 5 × 12 = 60, so the fifth is 60 - 46 = 14. The answer is $\\boxed{E}$.",
    ),
)

_WORD_ZH = (
    Example(
        "每盒铅笔有12支，老师买来6盒，发给学生58支，还剩多少支？",
        "一共有 12 × 6 = 72 支，还剩 72 - 58 = 14 支。答案是 $\\boxed{14}$。",
    ),
    Example(
        "长方形花坛长15米，宽8米，沿四周围一圈篱笆，篱笆长多少米？",
        "长与宽的和是 15 + 8 = 23 米，一圈是 23 × 2 = 46 米。答案是 $\\boxed{46}$。",
    ),
    Example(
        "小林以每分钟65米的速度走了14分钟，这时离图书馆还有90米。他一共要走多少米？",
        "已经走了 65 × 14 = 910 米，一共要走 910 + 90 = 1000 米。答案是 $\\boxed{1000}$。",
    ),
    Example(
        "果园里有120棵苹果树，梨树的棵数是苹果树的四分之三。两种树共有多少棵？",
        "梨树有 120 × 3 / 4 = 90 棵，两种树共有 120 + 90 = 210 棵。答案是 $\\boxed{210}$。",
    ),
    Example(
        "一件外套原价240元，现在按八五折出售，比原来便宜多少元？",
        "现价是 240 × 0.85 = 204 元，便宜了 240 - 204 = 36 元。答案是 $\\boxed{36}$。",
    ),
)

_SCHOOL_ZH = (
    Example(
        "在等差数列 $\\{a_n\\}$ 中，$a_2 = 5$，$a_5 = 14$，求 $a_{10}$。",
        "公差 $d = \\frac{14 - 5}{3} = 3$，所以 $a_{10} = a_5 + 5d = 14 + 15 = \\boxed{29}$。",
    ),
    Example(
        "求函数 $f(x) = x^3 - 3x$ 在区间 $[0, 2]$ 上的最小值。",
        "由 $f'(x) = 3x^2 - 3 = 0$ 得 $x = 1$。比较 $f(0) = 0$，$f(1) = -2$，$f(2) = 2$，最小值为"
        " $\\boxed{-2}$。",
    ),
    Example(
        "设向量 $\\vec{a} = (2, -1)$ 与 $\\vec{b} = (m, 4)$ 互相垂直，求实数 $m$。",
        "由 $\\vec{a} \\cdot \\vec{b} = 2m - 4 = 0$ 得 $m = \\boxed{2}$。",
    ),
    Example(
        "某小组有4名男生和3名女生，任选2人参加活动，求其中至少有1名女生的概率。",
        "全选男生的概率是 $\\frac{6}{21} = \\frac{2}{7}$，所求概率为 $1 - \\frac{2}{7} ="
        " \\boxed{\\frac{5}{7}}$。",
    ),
    Example(
        "复数 $z$ 满足 $z(1 + i) = 3 + i$，求 $|z|$。",
        "两边取模，$|z| \\cdot \\sqrt{2} = \\sqrt{10}$，所以 $|z| = \\boxed{\\sqrt{5}}$。",
    ),
)

_CHOICE_ZH = (
    Example(
        "集合 $\\{1, 2, 3, 4\\}$ 里比 $2$ 大的数有几个？( )\nA. 1  B. 2  C. 3  D. 4",
        "比 2 大的数是 3 和 4，共 2 个。答案是 $\\boxed{B}$。",
    ),
    Example(
        "下面四个数里，哪一个是无理数？( )\n"
        "A. $0.25$  B. $\\frac{22}{7}$  C. $\\sqrt{2}$  D. $\\sqrt{9}$",
        "$\\sqrt{9} = 3$，前两个数是分数，只有 $\\sqrt{2}$ 是无理数。答案是 $\\boxed{C}$。",
    ),
    Example(
        "直线 $y = -2x + b$ 经过点 $(1, 3)$，那么 $b$ 等于 ( )\nA. 1  B. 3  C. 4  D. 5",
        "代入得 $3 = -2 + b$，所以 $b = 5$。答案是 $\\boxed{D}$。",
    ),
    Example(
        "$\\sin 30^\\circ + \\cos 60^\\circ$ 的值为 ( )\n"
        "A. $1$  B. $\\sqrt{3}$  C. $\\frac{1}{2}$  D. $0$",
        "两项都等于 $\\frac{1}{2}$，和为 1。答案是 $\\boxed{A}$。",
    ),
    Example(
        "抛物线 $y^2 = 8x$ 的焦点坐标是 ( )\nA. $(1, 0)$  B. $(2, 0)$  C. $(4, 0)$  D. $(0, 2)$",
        "由 $2p = 8$ 得 $\\frac{p}{2} = 2$，焦点是 $(2, 0)$。答案是 $\\boxed{B}$。",
    ),
)

EXAMPLES = MappingProxyType(  # subject → examples, the first n are shown
    {
        "word": _WORD,
        "competition": _COMPETITION,
        "college": _COLLEGE,
        "science": _SCIENCE,
        "choice": _CHOICE,
        "word-zh": _WORD_ZH,
        "school-zh": _SCHOOL_ZH,
        "choice-zh": _CHOICE_ZH,
    }
)
