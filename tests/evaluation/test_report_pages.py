import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from prerank import artifacts as a
from prerank.evaluation import evaluate as stage
from prerank.evaluation import explain, plots
from prerank.evaluation.config import EvaluateConfig
from prerank.evaluation.extra import with_extra
from prerank.evaluation.html import prose
from prerank.evaluation.report_html import render_html
from prerank.evaluation.sheets import comparison_sheets
from prerank.evaluation.summary import summarise
from prerank.evaluation.table import print_table
from prerank.evaluation.view import view

from .worlds import dataset

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
METHODS = ("exposed-only", "negative-sampling", "gpl", "gpl-history", "gpl-shuffled")


def report(gains: dict[str, float] | None = None, n_seeds: int = 3) -> a.Report:
    """Return a report in which methods see the truth as clearly as ``gains`` says."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(80, dtype=np.int32), 10)
    item = np.tile(np.arange(10, dtype=np.int32), 80)
    truth = rng.normal(size=len(user))
    click = (truth + rng.normal(size=len(user)) > 0.3).astype(np.int8)
    world = dataset(user, item, click, exposures={0: 50, 1: 30, 2: 25, 3: 5})
    clear = {"gpl": 2.0, "gpl-history": 1.5, "gpl-shuffled": 0.1, **(gains or {})}
    noise = rng.normal(size=(n_seeds, len(user)))
    made = {m: (clear.get(m, 0.5) * truth + noise).astype(np.float32) for m in METHODS}
    return stage.evaluate(world, None, made, EvaluateConfig(n_resamples=60), 0)


def hostile_extra() -> dict[str, Any]:
    return {
        "users": [
            {
                "user": HOSTILE,
                "history": [HOSTILE],
                "anchors": [{"title": HOSTILE, "cosine": 0.9, "prob": 0.1, "first_code": 3}],
                "labels": [
                    {
                        "title": HOSTILE,
                        "label": 0.3,
                        "confidence": 1.0,
                        "because": HOSTILE,
                        "truth": None,
                    }
                ],
            }
        ],
        "notes": [HOSTILE],
        "recipe": HOSTILE,
        "versions": {"prerank": HOSTILE},
        "stages": [{"stage": "prepare", "seconds": 1.5, "fingerprint": "abc"}],
        "labels": {
            HOSTILE: {
                "histogram": {"edges": [0.0, 0.3, 0.6, 1.0], "counts": [3, 2, 1]},
                "n": 4,
                "abstained": 1,
                "mean": 0.2,
                "reliability": [{"predicted": 0.2, "clicked": 0.3, "n": 4}],
                "reliability_on": HOSTILE,
                "knots": [[0.0, 0.1], [1.0, 0.9]],
                "fit": {"prior": HOSTILE},
            }
        },
        "semantic_ids": {
            "n_items": 10,
            "codebook_sizes": [4, 4],
            "codes_used": [4, 3],
            "perplexity": [3.5, 2.5],
            "bucket_cosine": None,
        },
        "cascade": {
            "funnel": [{"step": HOSTILE, "rows": 9, "users": 3, "items": 2}],
            "deciles": [
                {
                    "decile": 1,
                    "items": 2,
                    "low": 0,
                    "high": 4,
                    "candidates": 1.0,
                    "exposures": 1.0,
                    "clicks": 0.0,
                }
            ],
            "lorenz": {HOSTILE: [0.0, 1.0]},
            "gini": {HOSTILE: 0.0},
        },
        "map": {
            "points": [
                {"item": "i", "title": HOSTILE, "sid": "0.1", "first_code": 0, "x": 0.0, "y": 1.0}
            ],
            "explained": [0.5, 0.25],
            "items": 1,
        },
        "data_card": {"title": HOSTILE, "facts": [[HOSTILE, HOSTILE]], "notes": [HOSTILE]},
        "anchors": {
            "source": "llm",
            "users": 80,
            "with_anchors": 79,
            "per_user": 20.0,
            "first_codes_per_user": 9.5,
            "cosine_within_user": 0.4,
        },
    }


class Elements(HTMLParser):
    """Collects elements, attributes and the text outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text.append(data)


def test_hostile_text_stays_text() -> None:
    page = render_html(with_extra(report(), hostile_extra()), title=HOSTILE)
    seen = Elements(page)
    assert sum(tag == "script" for tag, _ in seen.tags) == 3  # figures, plotly, ours
    assert not any(tag == "img" for tag, _ in seen.tags)
    assert not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert HOSTILE in "".join(seen.text)
    assert "<script>alert" not in page


def test_prose_shows_code_and_escapes_all_else() -> None:
    assert prose("`a_b` and <b>") == "<code>a_b</code> and &lt;b&gt;"
    assert prose(f"`{HOSTILE}`").count("<") == 2  # of the code element alone
    assert prose("one ` alone") == "one ` alone"


def test_page_loads_nothing_and_has_plotly_once() -> None:
    page = render_html(report())
    seen = Elements(page)
    assert not any("src" in attrs for _, attrs in seen.tags)
    links = [attrs["href"] or "" for _, attrs in seen.tags if "href" in attrs]
    assert all(link.startswith("#") for link in links)
    assert page.count("plotly.js v") == 1
    policy = next(attrs["content"] for _, attrs in seen.tags if "http-equiv" in attrs)
    assert policy is not None and policy.startswith("default-src 'none'")


def test_every_plot_has_its_place() -> None:
    page = render_html(with_extra(report(), hostile_extra()))
    block = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert block is not None
    figures = json.loads(block.group(1))
    places = [a["id"] for _, a in Elements(page).tags if a.get("class") == "plot"]
    # The cascade: three; pool: GAUC, tail GAUC, shares, reliability; labels: three; semantic IDs
    # and map; timings.
    assert places == [f"plot-{k + 1}" for k in range(13)]
    assert len(figures) == 13


def test_page_of_a_bare_report() -> None:
    record = a.Record("m", "p", "all", "gauc", None, None, None, 0, 1, "no rows")
    page = render_html(a.Report((record,)))
    assert "no rows" in page and "Report" in page
    assert "Nothing was evaluated" in render_html(a.Report(()))


def test_summary_says_what_came_out() -> None:
    said = summarise(view(report(n_seeds=5)))
    assert "gpl ranks better than exposed-only: +0." in said[0]
    assert "gpl-history" in said[2] and "of gpl's gain" in said[2]
    assert "adds something that the history lacks" in said[2]
    assert "other users (gpl-shuffled) loses −0." in said[3]
    assert said[-1].startswith("Highest GAUC among the 5 trained methods: gpl (0.")


def test_summary_is_honest_when_the_method_loses() -> None:
    said = summarise(view(report({"gpl": 0.1, "gpl-history": 2.0, "gpl-shuffled": 1.0})))
    assert "gpl ranks worse than exposed-only: −0." in said[0]
    assert "own history makes better anchors" in said[2]
    assert "does not come from the user's interests" in said[3]
    assert "trained methods: gpl-history" in said[-1] and "number 5." in said[-1]


def test_summary_tells_no_difference_from_noise() -> None:
    said = summarise(view(report({"gpl": 0.5, "gpl-history": 0.5})))
    assert "no difference between gpl and exposed-only can be told" in said[0]
    assert "adds nothing that can be told from noise" in said[2]


def differing(**interval: tuple[float, float, float]) -> a.Report:
    """Return a report in which methods differ from exposed-only by (value, low, high)."""
    found = {name.replace("_", "-"): gap for name, gap in interval.items()}
    records = [
        a.Record(name, "p", "all", "gauc", 0.6, 0.5, 0.7, 80, 3)
        for name in ("exposed-only", *found)
    ]
    differences = [
        a.Record(f"{name} - exposed-only", "p", "all", "gauc", *gap, 80, 3)
        for name, gap in found.items()
    ]
    return a.Report(tuple(records), tuple(differences))


def gaps(**interval: tuple[float, float, float]) -> list[str]:
    return summarise(view(differing(**interval)))


@pytest.mark.parametrize(
    ("gap", "wanted"),
    [
        ((0.09, -0.439, 0.471), "gains nothing that can be told from noise: +0.090 [−0.439, "),
        ((-0.05, -0.08, -0.02), "loses −0.050 [−0.080, −0.020]"),
        ((0.05, 0.02, 0.08), "gain +0.050 [+0.020, +0.080] too"),
    ],
)
def test_summary_says_of_controls_what_their_interval_says(
    gap: tuple[float, float, float], wanted: str
) -> None:
    said = gaps(gpl=(0.1, 0.05, 0.15), gpl_shuffled=gap)
    assert any(wanted in sentence for sentence in said)
    assert "should" not in " ".join(said)
    said = gaps(gpl=(0.1, 0.05, 0.15), gpl_history=gap)
    assert any(wanted.split(" too")[0].replace("gain +", "gains +") in one for one in said)


def test_summary_divides_by_no_gain_that_may_be_none() -> None:
    control = (0.06, 0.02, 0.1)
    assert "60% of gpl's gain" in " ".join(gaps(gpl=(0.1, 0.05, 0.15), gpl_history=control))
    assert "% of gpl's gain" not in " ".join(gaps(gpl=(0.008, -0.1, 0.1), gpl_history=control))


GAINS = (0.05, 0.02, 0.08)
CLOSED = "The labels of gpl (skill −0.057, lower bound −0.096) got no weight"


def test_labels_without_weight_judge_no_language_model() -> None:
    same = differing(gpl=(0.0, 0.0, 0.0), gpl_history=GAINS, gpl_shuffled=GAINS)
    closed: Any = {"gpl": {"skill": -0.0573, "skill_low": -0.0962}}
    found = with_extra(same, {"unearned": closed})
    said = " ".join(summarise(view(found)))
    assert CLOSED in said and "as exposed-only does. So this report cannot tell" in said
    assert "adds nothing" not in said and "better anchors" not in said and "too:" not in said
    assert "other users (gpl-shuffled) gains +0.050" in said
    out = io.StringIO()
    print_table(found, Console(file=out, width=300))
    assert CLOSED in out.getvalue()
    assert CLOSED in render_html(found).split("<h2>Pool")[1]
    (values, *_) = comparison_sheets(view(found))
    assert CLOSED in values.note


def test_a_control_without_weight_judges_no_language_model() -> None:
    found = differing(gpl=GAINS, gpl_history=(0.0, 0.0, 0.0))
    gap = a.Record("gpl - gpl-history", "p", "all", "gauc", *GAINS, 80, 3)
    closed: Any = {"gpl-history": {"skill": None, "skill_low": None}}
    found = with_extra(replace(found, differences=(*found.differences, gap)), {"unearned": closed})
    said = " ".join(summarise(view(found)))
    assert "The labels of gpl-history (skill unknown) got no weight" in said
    assert "adds something" not in said


def test_a_history_control_that_is_the_baseline_was_run() -> None:
    found = differing(gpl=GAINS)
    as_config = EvaluateConfig(history_control="exposed-only").model_dump(mode="json")
    about: Any = {"config": as_config, "seed": 0}
    said = " ".join(summarise(view(with_extra(found, {"evaluation": about}))))
    assert "The baseline (exposed-only) is the history control" in said
    assert "not run" not in said and "not run" in " ".join(summarise(view(found)))


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_table_fits_100_columns_without_colour(n_seeds: int) -> None:
    out = io.StringIO()
    print_table(report(n_seeds=n_seeds), Console(file=out, width=100))
    text = out.getvalue()
    assert "\x1b" not in text and "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    lines = [line.split() for line in text.splitlines() if "gpl" in line or "only" in line]
    names = [line[0] for line in lines if line[0] in METHODS]
    assert names == ["gpl", "gpl-history", "gpl-shuffled", "exposed-only"]
    assert "  gpl-history" in text and "*" in text


def test_metric_plot_is_sorted_with_whiskers() -> None:
    rows = [
        (a.Record("low", "p", "all", "gauc", 0.5, 0.4, 0.7, 10, 3), "other"),
        (a.Record("few", "p", "all", "gauc", 0.55, 0.4, 0.7, 9, 3), "other"),
        (a.Record("base", "p", "all", "gauc", 0.6, None, None, 9, 1), "baseline"),
        (a.Record("none", "p", "all", "gauc", None, None, None, 0, 1, "why"), "other"),
        (a.Record("<b>top", "p", "all", "gauc", 0.8, 0.7, 0.9, 80, 3), "method"),
    ]
    figure = plots.metric_plot(rows, "GAUC", "base")
    assert list(figure.layout.yaxis.categoryarray) == ["low", "few", "base", "&lt;b&gt;top"]
    assert figure.layout.shapes[0].x0 == 0.6
    others = next(trace for trace in figure.data if "low" in trace.y)
    assert others.y == ("low", "few")
    assert others.error_x.array == pytest.approx([0.2, 0])  # nine users have no interval
    assert others.error_x.arrayminus == pytest.approx([0.1, 0])


def test_forty_methods_stay_on_one_printed_page() -> None:
    """A4 across has 186 mm, 703 of the browser's pixels, a title included."""
    assert plots.rows_height(40) + 40 <= 703
    assert plots.rows_height(3) < plots.rows_height(5) == 110 + 5 * 26
    figure = plots.share_plot({f"m{k}": {"head": 1.0} for k in range(40)})
    assert figure.layout.height == plots.rows_height(40)
    assert len(figure.layout.yaxis.tickvals) == 40  # every name is written


def test_long_names_are_cut_beside_their_rows_only() -> None:
    short, long = "gpl & co", "match llm-debiased+history, <weighted> & more"
    figure = plots.share_plot({name: {"head": 1.0} for name in (short, long)})
    beside, whole = figure.layout.yaxis.ticktext, figure.layout.yaxis.categoryarray
    assert list(beside) == ["match llm-debiased+histor…", "gpl &amp; co"]
    assert list(whole) == [
        "match llm-debiased+history, &lt;weighted&gt; &amp; more",
        "gpl &amp; co",
    ]
    assert set(figure.data[0].y) == set(whole)  # a hint tells the whole


def test_share_plot_has_the_first_row_on_top() -> None:
    figure = plots.share_plot({"candidates": {"head": 0.2, "mid": 0.3, "tail": 0.5}, "m": {}})
    assert figure.data[0].y[-1] == "candidates"
    assert [trace.x[-1] for trace in figure.data] == [0.2, 0.3, 0.5]


# ---- explain: two users, four items on a circle ------------------------------------------------


def small() -> tuple[a.Dataset, a.ItemEmbeddings, a.InterestAnchors, a.PseudoLabels]:
    world = dataset([0, 1], [0, 1], [1, 0], n_items=4, title="film")
    fields = {name: getattr(world, name) for name in world.__dataclass_fields__}
    nan = np.float32(np.nan)
    fields["interactions"] = a.Interactions(
        np.array([0, 0], np.int32), np.array([3, 1], np.int32), np.zeros(2, np.int64)
    )
    fields["candidates"] = a.Candidates(
        request=np.zeros(3, np.int64),
        user=np.array([0, 0, 1], np.int32),
        item=np.array([2, 0, 2], np.int32),
        time=np.zeros(3, np.int64),
        stage=np.zeros(3, np.int8),
        score=np.full(3, nan),
        truth=np.array([1, nan, 0], np.float32),
    )
    vectors = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    anchors = a.InterestAnchors(
        offsets=np.array([0, 2, 2]),
        codes=np.array([[5, 0], [7, 0]], np.int32),
        point=np.array([0, 1], np.int32),
        points=np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32),
        logprob=np.log(np.array([0.5, 0.25], np.float32)),
        logprob_legal=np.zeros(2, np.float32),
        source="llm",
    )
    labels = a.PseudoLabels(
        user=np.array([0, 0, 1], np.int32),
        item=np.array([2, 0, 2], np.int32),
        time=np.zeros(3, np.int64),
        label=np.array([0.9, 0.2, 0.5], np.float32),
        confidence=np.array([1, 1, 0], np.float32),
        relevance=np.zeros(3, np.float32),
        anchor=np.array([1, 0, -1]),
        dispersion=np.full(3, nan),
        history=np.full(3, nan),
        llm=np.full(3, nan),
        fit={"prior": 0.1, "knots": [[0.0, 0.1]], "reliability": [[0.2, 0.3, 7]]},
    )
    return a.Dataset(**fields), a.ItemEmbeddings(vectors), anchors, labels


def test_sample_user_by_hand() -> None:
    world, space, anchors, labels = small()
    (user,) = explain.sample_users(world, space, anchors, labels, 1, 0)
    assert user["user"] == "u000000"  # the only one with anchors, history and labels
    assert user["history"] == ["film 3", "film 1"]
    assert [(x["title"], x["first_code"]) for x in user["anchors"]] == [
        ("film 0", 5),
        ("film 1", 7),
    ]
    assert user["anchors"][0]["cosine"] == pytest.approx(0.8)
    assert user["anchors"][0]["prob"] == pytest.approx(0.5)
    first, second = user["labels"]
    assert (first["title"], first["because"], first["truth"]) == ("film 2", "film 1", 1)
    assert (second["title"], second["because"], second["truth"]) == ("film 0", "film 0", None)


def test_users_without_anything_can_be_shown() -> None:
    world, space, anchors, _ = small()
    users = explain.sample_users(world, space, anchors, None, 5, 0)
    assert [user["user"] for user in users] == ["u000000", "u000001"]
    assert users[1]["history"] == users[1]["anchors"] == users[1]["labels"] == []


def test_nearest_item_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    world, space, anchors, labels = small()
    at_once = explain.sample_users(world, space, anchors, labels, 2, 0)
    monkeypatch.setattr(explain, "ITEM_CELLS", 1)
    assert explain.sample_users(world, space, anchors, labels, 2, 0) == at_once


@pytest.mark.parametrize("cells", [8, 100, 10**6])
def test_nearest_items_are_those_of_a_full_sort(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "ITEM_CELLS", cells)
    monkeypatch.setattr(explain, "FIRST_BLOCK", 7)
    rng = np.random.default_rng(1)
    # Few distinct rows: equal cosines must keep the order of the items.
    vectors = rng.normal(size=(9, 3)).astype(np.float32)[rng.integers(0, 9, 60)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = np.eye(3, dtype=np.float32)
    item, cosine = explain.nearest_items(asked, a.ItemEmbeddings(vectors), 5)
    for row, one in enumerate(asked):
        full = one @ vectors.T
        best = np.lexsort((np.arange(60), -full))[:5]
        assert item[row].tolist() == best.tolist()
        assert cosine[row] == pytest.approx(full[best])
    few, none = explain.nearest_items(asked, a.ItemEmbeddings(vectors[:2]), 4)
    assert few[:, 2:].tolist() == [[-1, -1]] * 3 and np.isinf(none[:, 2:]).all()


def test_describe_labels_by_hand() -> None:
    world, _, _, labels = small()
    about = explain.describe_labels(labels, world)
    assert (about["n"], about["abstained"]) == (3, 1)
    assert about["mean"] == pytest.approx(0.55)
    assert sum(about["histogram"]["counts"]) == 2
    # The one labelled pair with a known truth.
    assert [b["n"] for b in about["reliability"]] == [1]
    assert about["reliability"][0]["clicked"] == 1
    assert about["fit"] == {"prior": 0.1} and about["knots"] == [[0.0, 0.1]]
    json.dumps(about)


def test_reliability_of_the_fit_stands_in_for_the_truth() -> None:
    _, _, _, labels = small()
    about = explain.describe_labels(labels, dataset([0, 1], [0, 1], [1, 0], n_items=4))
    assert about["reliability"] == [{"predicted": 0.2, "clicked": 0.3, "n": 7}]
    assert "held-out" in about["reliability_on"]


def test_describe_anchors_by_hand() -> None:
    _, _, anchors, _ = small()
    about = explain.describe_anchors(anchors)
    assert (about["users"], about["with_anchors"], about["per_user"]) == (2, 1, 2)
    assert about["first_codes_per_user"] == 2
    assert about["cosine_within_user"] == pytest.approx(0, abs=1e-6)  # .8 * -.6 + .6 * .8


def test_describe_anchors_of_nobody() -> None:
    empty = a.InterestAnchors(
        offsets=np.zeros(3, np.int64),
        codes=np.zeros((0, 2), np.int32),
        point=np.zeros(0, np.int32),
        points=np.zeros((0, 2), np.float32),
        logprob=np.zeros(0, np.float32),
        logprob_legal=np.zeros(0, np.float32),
        source="llm",
    )
    about = explain.describe_anchors(empty)
    assert (about["with_anchors"], about["cosine_within_user"]) == (0, 0)


def test_roles_order_the_methods_and_keep_ceilings_out_of_competition() -> None:
    world = dataset([0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 0])
    right, wrong = np.array([[2, 1, 2, 1]], np.float32), np.array([[1, 2, 1, 2]], np.float32)
    made = {"true-labels": right, "kd": wrong, "exposed-only": wrong, "gpl-history": wrong}
    config = EvaluateConfig(n_resamples=10)
    label = {"match": right}
    seen = view(stage.evaluate(world, None, {**made, "gpl": wrong}, config, 0, label_scores=label))
    assert seen.methods == (
        ("gpl", "method"),
        ("gpl-history", "control"),
        ("exposed-only", "baseline"),
        ("kd", "other"),
        ("true-labels", "ceiling"),
        ("match", "label"),
    )
    assert "4 trained methods" in summarise(seen)[-1]
    assert "true-labels" not in summarise(seen)[-1]


def test_reasons_are_said_once() -> None:
    world = dataset([0, 0], [0, 1], [1, 0])
    many = {f"label-{k}": np.array([[2, 1]], np.float32) for k in range(7)}
    report_ = stage.evaluate(world, None, {}, EvaluateConfig(n_resamples=10), 0, label_scores=many)
    # Once in all items and once in the tail; head and mid have no rows.
    assert render_html(report_).count("ECE of 7 methods: the score is no logit") == 2
