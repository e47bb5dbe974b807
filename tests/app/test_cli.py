"""The command line: every verb on a tiny model, and one line with exit code 2 for bad input."""

import json
import math
import subprocess
import sys

import pytest

from tokenry.lab.outcome import verdict
from tokenry.lab.table import Table
from tokenry.papers import catalogue
from tokenry.papers.base import Paper

VERBS = (
    "inspect",
    "generate",
    "train",
    "tokenize",
    "objectives",
    "papers",
    "reproduce",
    "models",
    "audit",
    "demo",
    "plan",
    "compress",
    "data",
)
PAIRS = [
    {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " gathered feathers"},
    {"prompt": "the dog", "chosen": " sat there", "rejected": " is a theory"},
]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in PAIRS) + "\n")
    return path


@pytest.fixture
def toy_paper(monkeypatch):
    def reproduce(seed, scale):
        table = Table()
        table.add("method", 2.0, "tokens", seed)
        table.add("rival", 1.0, "tokens")
        return verdict(table, {"method > rival + 5": False}, reason="toy")

    paper = Paper(7, "toy", "A toy", "0000.00000", "sampler", "toys", "It plays.", reproduce)
    monkeypatch.setattr(catalogue, "papers", lambda: {"toy": paper})
    return paper


# --- help and version -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_with_an_example_and_every_verb_takes_a_seed(run, verb):
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert "Example" in out
    assert f"tokenry {verb}" in out
    assert "--seed" in out


def test_version(run):
    import tokenry

    assert run("--version")[:2] == (0, f"tokenry {tokenry.__version__}\n")


def test_starting_loads_neither_torch_nor_transformers():
    script = (
        "import sys; from tokenry.app.cli import main; main(['--version']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# --- what each verb prints ------------------------------------------------------------------------


def test_inspect_prints_the_text_and_its_most_surprising_tokens(run, model):
    code, out, _ = run("inspect", "the cat sat there", "-m", model, "--rows", 2)
    assert code == 0
    assert "the cat sat there" in out
    assert "surprisal" in out


def test_inspect_writes_a_page_and_prints_json(run, model, tmp_path):
    page = tmp_path / "new" / "page.html"
    code, out, _ = run("inspect", "the cat", "-m", model, "--html", page, "--json", "-s", "rank")
    found = json.loads(out)
    assert code == 0
    assert "".join(row["token"] for row in found["tokens"]) == "the cat"
    assert {"surprisal", "rank"} <= set(found["tokens"][0])
    first, *others = found["tokens"]  # nothing stands before it: no number is made up
    assert first["surprisal"] is first["rank"] is None
    assert all(row["surprisal"] > 0 for row in others)
    assert page.read_text().startswith("<!doctype html>")
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]


def test_inspect_against_a_model_with_the_same_weights_differs_nowhere(run, model):
    _, out, _ = run(
        "inspect", "the cat sat", "-m", model, "--against", model, "-s", "divergence", "--json"
    )
    for row in json.loads(out)["tokens"][1:]:
        assert row["divergence"] == pytest.approx(0, abs=1e-5)
        assert row["difference"] == pytest.approx(0, abs=1e-5)


def test_inspect_against_a_checkpoint_says_how_few_tokens_carry_the_divergence(run, model):
    words = ("inspect", "the cat sat", "-m", model)
    _, out, _ = run(*words, "--against", model, "--json")
    spread = json.loads(out)["concentration"]
    assert spread["tokens"] == len(json.loads(out)["tokens"]) - 1
    assert (spread["below_0.01"], spread["above_0.1"]) == (1.0, 0.0)
    assert 0 <= spread["carry_half"] <= spread["carry_nine_tenths"] <= 1
    assert json.loads(run(*words, "--json")[1])["concentration"] is None
    assert "carry half of the divergence" in run(*words, "--against", model)[1].replace("\n", " ")
    assert "carry half" not in run(*words)[1]


def test_inspect_reads_a_file_and_standard_input(run, model, tmp_path, monkeypatch):
    import io

    file = tmp_path / "text.txt"
    file.write_text("the cat")
    _, from_file, _ = run("inspect", "-f", file, "-m", model, "--json")
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat"))
    _, from_input, _ = run("inspect", "-", "-m", model, "--json")
    assert from_file == from_input


def test_tokenize_gives_bytes_that_spell_the_text(run, model):
    _, out, _ = run("tokenize", "naïve 🙂", "-m", model, "--json")
    found = json.loads(out)
    spelled = b"".join(bytes.fromhex(row["bytes"]) for row in found["tokens"])
    assert spelled.decode() == "naïve 🙂"
    assert found["expanded"] is None


def test_stochastok_splits_spell_the_same_and_name_their_origin(run, model):
    text = "the cat sat on the mat and the dog sat there"
    _, out, _ = run("tokenize", text, "-m", model, "--stochastok", 2, "--json", "--seed", 3)
    found = json.loads(out)
    assert len(found["expanded"]) > len(found["tokens"])
    for row in found["tokens"]:
        parts = [part["bytes"] for part in found["expanded"] if part["from"] == row["position"]]
        assert " ".join(parts) == row["bytes"]
    assert run("tokenize", text, "-m", model, "--stochastok", 2)[1].count("\n") > 3


def test_generate_streams_the_text_that_json_holds(run, model):
    code, streamed, _ = run("generate", "the cat", "-m", model, "-n", 12, "--seed", 4)
    _, out, _ = run("generate", "the cat", "-m", model, "-n", 12, "--seed", 4, "--json")
    found = json.loads(out)
    assert code == 0
    assert streamed == found["text"] + "\n"
    wanted = {"text", "samples", "log_evidence", "tokens", "seconds", "forward_passes"}
    assert wanted | {"checks_per_token"} <= set(found)
    assert set(found["samples"][0]) == {"text", "log_weight", "tokens"}
    assert found["tokens"] == found["forward_passes"] == 12


def test_generate_under_a_schema_gives_weighted_json(run, model, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["cat", "dog", "mat"]}))
    _, out, _ = run(
        "generate", "the", "-m", model, "--json-schema", schema, "--particles", 4, "--json"
    )
    found = json.loads(out)
    weights = [s["log_weight"] for s in found["samples"]]
    assert len(weights) == 4
    alive = [s for s in found["samples"] if s["log_weight"] is not None]
    assert all(json.loads(s["text"]) in ("cat", "dog", "mat") for s in alive)
    mean = sum(math.exp(s["log_weight"]) for s in alive) / 4
    assert found["log_evidence"] == pytest.approx(math.log(mean))
    assert found["text"] in [s["text"] for s in alive]


@pytest.mark.parametrize("how", [["--sampler", "mask"], ["--draft", "recycling"], ["-t", "0"]])
def test_a_regular_expression_holds_however_the_text_is_decoded(run, model, how):
    code, out, _ = run("generate", "the", "-m", model, "--regex", "(cat|dog){2}", *how)
    assert code == 0
    assert out.strip() in ("catcat", "catdog", "dogcat", "dogdog")


def test_constraints_on_text_and_words_hold_together(run, model):
    _, out, _ = run(
        "generate", "x ", "-m", model, "--regex", "[a-e]{3} [a-e]{2}", "--without-letter", "a",
        "--without-letter", "e", "--sampler", "mask",
    )  # fmt: skip
    assert set(out.strip()) <= set("bcd ")


@pytest.mark.parametrize(
    "sampler",
    ["smc:resampling=systematic", "awrs:max_accepts=3", "rejection", "asap:rows=2", "guard",
     "beam:beams=2", "best-of-n:n=2"],
)  # fmt: skip
def test_every_sampler_is_reached_with_its_settings(run, model, sampler):
    code, out, _ = run(
        "generate", "the", "-m", model, "--regex", "[a-z ]{1,9}", "--sampler", sampler, "-p", 2,
        "-n", 12, "--json", "--steer", "ending",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found["text"] in [s["text"] for s in found["samples"] if s["log_weight"] is not None]
    assert set(found["text"]) <= set("abcdefghijklmnopqrstuvwxyz ")


def test_guard_takes_a_proposal(run, refused, model):
    base = ["generate", "the", "-m", model, "--regex", "[a-z ]{1,9}", "-n", 8]
    how = ["--sampler", "guard:rows=8", "--proposal", "the cat sat", "--steer", "ending"]
    assert run(*base, *how)[0] == 0
    assert run(*base, *how[:2], "--proposal-model", model, *how[-2:])[0] == 0
    assert "--sampler guard" in refused(*base, "--proposal", "the cat sat")


def test_texts_hold_what_is_asked_and_are_no_shorter(run, model):
    _, out, _ = run(
        "generate", "the", "-m", model, "--contains", "og", "--regex", "(cat|dog)", "--json",
        "--particles", 8,
    )  # fmt: skip
    assert json.loads(out)["text"] == "dog"
    _, out, _ = run(
        "generate", "the", "-m", model, "-n", 9, "--constrain", "length:minimum=7", "--json"
    )
    assert len(json.loads(out)["samples"][0]["tokens"]) >= 7


def test_a_python_function_judges(run, refused, model, tmp_path):
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def short(text): return len(text) == 3\nbegins = lambda text: len(text) <= 3\nnumber = 3\n"
    )
    base = ["generate", "the", "-m", model, "-n", 8, "--steer", "ending", "--constrain"]
    both = f"predicate:complete={judge}:short,prefix={judge}:begins"
    assert len(run(*base, both)[1].rstrip("\n")) == 3
    assert "function of a text" in refused(*base, f"predicate:complete={judge}:number")
    assert "needs complete" in refused(*base, f"predicate:prefix={judge}:begins")


def test_a_critic_shifts_the_texts(run, refused, model, tmp_path):
    critic = tmp_path / "critic.py"
    critic.write_text("def dog(text): return 60.0 * text.startswith('d')\n")
    base = ["generate", "the", "-m", model, "--regex", "(cat|dog)", "-p", 24]
    for how in ([], ["--sampler", "smc:ess_threshold=0.7"]):
        assert run(*base, "--critic", f"{critic}:dog", *how)[1] == "dog\n"
    assert "--sampler smc" in refused(*base, "--critic", f"{critic}:dog", "--sampler", "asap")


def test_stop_strings_end_the_text_and_are_not_shown(run, model):
    base = ["generate", "the cat", "-m", model, "-n", 16, "--without-letter", "e"]
    whole = run(*base)[1].rstrip("\n")
    stop = whole[3:5]
    _, streamed, _ = run(*base, "--stop", stop)
    _, held, _ = run(*base, "--stop", stop, "--json")
    assert streamed.rstrip("\n") == whole[: whole.index(stop)]
    assert json.loads(held)["text"] == whole[: whole.index(stop)]


def test_steering_reaches_every_way_of_decoding(run, refused, model, tmp_path):
    style = tmp_path / "style.txt"
    style.write_text("the cat sat on the mat\n\nthe cat sat\n")
    base = ["generate", "the", "-m", model, "-n", 12]
    strong = ["--steer", f"ngram-style:ngrams={style},strength=40", "-t", 0]
    texts = [run(*base, *strong, *how)[1] for how in ([], ["--draft", "recycling"])]
    assert texts[0] == texts[1]
    assert texts[0].startswith(" cat sat")
    assert run(*base, "--steer", "stopping:expected_length=0.01")[1].strip() == ""
    assert "expected_length is 0" in refused(*base, "--steer", "stopping:expected_length=0")
    assert "needs a constraint" in refused(*base, "--steer", "ending")
    style.write_text("")
    assert "empty" in refused(*base, "--steer", f"ngram-style:ngrams={style}")


def test_bytes_finish_words_and_average_models(run, refused, model):
    base = ["generate", "the ca", "-m", model, "-n", 12, "--seed", 2]
    _, streamed, _ = run(*base, "--bytes")
    found = json.loads(run(*base, "--bytes", "--json")[1])
    assert streamed == found["text"] + "\n"
    assert bytes(found["samples"][0]["tokens"]).decode(errors="replace") == found["text"]
    _, both, _ = run(*base, "--ensemble", model)
    assert both == streamed  # a model with itself is the model
    assert "--regex" in refused(*base, "--bytes", "--regex", "a")
    assert "--draft" in refused(*base, "--bytes", "--draft", "recycling")


def test_contrast_with_the_same_prompt_keeps_the_likeliest_token(run, model):
    base = ["generate", "the cat", "-m", model, "-n", 8, "-t", 0]
    assert run(*base, "--steer", "uscd:negative=the cat")[1] == run(*base)[1]
    assert run(*base, "--steer", "uscd:negative=a dog")[0] == 0


def test_dictionary_and_melody_errors_name_their_input(refused, model, tmp_path):
    entries = tmp_path / "words.tsv"
    entries.write_text("cat\n")
    base = ["generate", "the cat", "-m", model]
    assert "line 1" in refused(*base, "--constrain", f"dictionary:phrases={entries}")
    assert "phrase 0 is '8;6'" in refused(*base, "--constrain", "melody:phrases=8;6")
    assert "rows" in refused(*base, "--sampler", "asap:row=2")
    assert "name=value" in refused(*base, "--sampler", "asap:2")
    assert "rows is 0" in refused(*base, "--sampler", "asap:rows=0")


def test_words_without_a_letter_may_be_cut_off_by_the_limit(run, model):
    for how in ([], ["--draft", "recycling"], ["--cache", "h2o:16"]):
        code, out, _ = run(
            "generate", "the cat", "-m", model, "--without-letter", "e", "-n", 10, "--json", *how
        )
        assert code == 0
        assert "e" not in json.loads(out)["text"].lower()


def test_a_draft_a_selecting_cache_and_a_schema_go_together(run, model, tmp_path):
    """With a budget above the text's length the three change nothing but the passes."""
    schema = tmp_path / "f.json"
    schema.write_text(
        json.dumps(
            {
                "type": "object",
                "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}},
                "required": ["ok", "n"],
                "additionalProperties": False,
            }
        )
    )
    base = ["generate", "x", "--model", model, "-t", "0", "-n", 200]
    # a random model might write nothing but white space
    base += ["--constrain", f"json:schema={schema},whitespace="]
    base += ["--json"]
    plain = json.loads(run(*base, "--sampler", "mask")[1])
    for size in (2048, 8):
        how = ["--draft", "goose", "--cache", f"tokenselect:{size}"]
        found = json.loads(run(*base, *how)[1])
        assert set(json.loads(found["text"])) == {"ok", "n"}
        if size == 2048:
            assert found["text"] == plain["text"]
        assert found["finished"]


def test_a_draft_and_a_full_cache_leave_greedy_text_as_it_is(run, model):
    base = ["generate", "the cat sat on", "-m", model, "-t", "0", "-n", 16]
    _, plain, _ = run(*base)
    _, drafted, _ = run(*base, "--draft", "recycling")
    _, mixed, _ = run(*base, "--draft", "goose:k=5+lookahead+dyspec", "--draft-model", model)
    _, cached, _ = run(*base, "--cache", "h2o:128")
    assert plain == drafted == mixed == cached


def test_chat_goes_through_the_template(run, model, tiny_tokenizer):
    _, asked, _ = run("generate", "hi", "-m", model, "--chat", "-n", 8, "-t", 0)
    messages = [{"role": "user", "content": "hi"}]
    prompt = tiny_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    _, written_out, _ = run("generate", prompt, "-m", model, "-n", 8, "-t", 0)
    assert asked == written_out


def test_train_saves_a_run_and_prints_only_its_result(run, model, pairs, tmp_path):
    output = tmp_path / "trained"
    config = tmp_path / "settings.yaml"
    config.write_text("beta: 0.2\nnum_train_epochs: 2\n")
    code, out, _ = run(
        "train", "--objective", "tdpo", "--data", pairs, "--model", model, "--output", output,
        "--config", config, "--lora", "--eval-data", pairs, "--json",
    )  # fmt: skip
    record = json.loads(out)
    assert code == 0
    assert record["hyperparameters"]["beta"] == 0.2
    assert record == json.loads((output / "run.json").read_text())
    assert (output / "adapter_config.json").exists()


def test_papers_print_the_fields_of_the_catalogue(run, toy_paper):
    code, out, _ = run("papers", "--json", "--role", "sampler")
    (row,) = json.loads(out)
    fields = ["number", "key", "title", "arxiv", "role", "family", "claim"]
    fields += ["held", "verdict", "seconds"]
    assert code == 0
    assert list(row) == fields
    assert "A toy" in run("papers")[1]
    assert "It plays." in run("papers", "toy")[1]


def test_reproduce_prints_the_record_that_it_writes(run, toy_paper, tmp_path):
    code, out, _ = run("reproduce", "toy", "--json", "--seed", 5, "--output", tmp_path / "results")
    record = json.loads(out)
    assert code == 0
    assert record == json.loads((tmp_path / "results" / "toy.json").read_text())
    wanted = {"key", "number", "claim", "held", "measurements", "seconds", "versions"}
    assert wanted <= set(record)
    assert record["held"] is False
    assert record["measurements"][0] == {
        "label": "method", "value": 2.0, "unit": "tokens", "seed": 5,
    }  # fmt: skip
    assert "not held" in run("reproduce", "toy", "--output", tmp_path / "results")[1]


def test_models_lists_the_named_ones(run):
    _, out, _ = run("models", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert {"smollm2", "gemma3-270m"} <= set(rows)
    assert set(rows["smollm2"]) >= {"cached", "download_bytes", "licence"}
    assert "Apache-2.0" in run("models")[1]


# --- bad input ------------------------------------------------------------------------------------


def test_missing_files_are_named(refused, model, tmp_path):
    gone = tmp_path / "gone.json"
    assert f"no such file: {gone}" in refused("inspect", "-f", gone, "-m", model)
    assert str(gone) in refused("generate", "x", "-m", model, "--json-schema", gone)
    assert str(gone) in refused("generate", "x", "-m", model, "--grammar", gone)
    assert str(gone) in refused("train", "-d", gone, "-o", tmp_path / "out", "-m", model)


def test_unknown_names_come_with_the_nearest(refused, pairs, tmp_path, toy_paper):
    assert "did you mean smollm2" in refused("inspect", "x", "-m", "smolm2")
    assert "did you mean smollm2" in refused("models", "pull", "smollm")
    assert "did you mean awrs" in refused("generate", "x", "--sampler", "awr")
    assert "did you mean recycling" in refused("generate", "x", "--draft", "recyclin")
    assert "did you mean h2o" in refused("generate", "x", "--cache", "h20:0.2")
    assert "did you mean entropy" in refused("inspect", "x", "-s", "entropie")
    wrong = ("train", "--objective", "tdop", "-d", pairs, "-o", tmp_path / "out")
    assert "did you mean" in refused(*wrong)
    assert "did you mean toy" in refused("reproduce", "toi")
    assert "did you mean sampler" in refused("papers", "--role", "samplers")
    assert "No such option" in refused("inspect", "x", "--signall", "rank")
    assert "nspec" in refused("inspct", "x")


def test_a_schema_that_is_none(refused, model, tmp_path):
    schema = tmp_path / "schema.json"
    for text in ("{", "42", '{"type": "strin"}', '{"$ref": "#/nowhere"}', "[]"):
        schema.write_text(text)
        line = refused("generate", "x", "-m", model, "--json-schema", schema)
        assert "schema" in line
    assert "regular expression" in refused("generate", "x", "-m", model, "--regex", "(")
    grammar = tmp_path / "g.lark"
    grammar.write_text("start: nothing_here")
    assert "grammar" in refused("generate", "x", "-m", model, "--grammar", grammar)


def test_constraints_that_nothing_satisfies(refused, model):
    words = ["--constrain", "words:only=xq,with=a"]
    assert "lexicon" in refused("generate", "x ", "-m", model, *words)
    assert refused("generate", "x", "-m", model, "--regex", r"a[^\s\S]")
    both = ["--regex", "a+", "--without-letter", "a"]
    assert refused("generate", "x ", "-m", model, *both)
    too_long = ["--regex", "a{40}", "-n", 3]
    for how in ([], ["--sampler", "mask"], ["--draft", "recycling"]):
        assert "raise -n" in refused("generate", "x", "-m", model, *too_long, *how)
    lengths = "words:shortest=2,longest=1"
    assert "2 to 1 letters" in refused("generate", "x", "-m", model, "--constrain", lengths)


def test_a_line_that_does_not_parse_is_numbered(refused, model, pairs, tmp_path):
    pairs.write_text(json.dumps(PAIRS[0]) + "\n{oops\n")
    assert "line 2" in refused("train", "-d", pairs, "-o", tmp_path / "out", "-m", model)
    assert not (tmp_path / "out").exists()


def test_empty_texts(refused, model, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for verb in ("inspect", "tokenize"):
        assert "empty" in refused(verb, "", "-m", model)
        assert "empty" in refused(verb, "-f", empty, "-m", model)
        assert "one of them" in refused(verb, "-m", model)
    assert "empty" in refused("generate", "", "-m", model)
    assert "no preference pairs" in refused("train", "-d", empty, "-o", tmp_path / "o", "-m", model)


def test_objectives_are_listed_with_what_they_need(run, refused):
    code, out, _ = run("objectives", "t*dpo", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert set(rows) == {"tdpo", "tgdpo"}
    assert rows["tgdpo"]["bring"] == ["--frozen guide=MODEL"]
    assert rows["tdpo"]["hyperparameters"]["alpha"] == 0.5
    assert rows["tdpo"]["hyperparameters"]["variant"] == "tdpo2"
    assert rows["tgdpo"]["hyperparameters"]["floor"] is None
    assert "no objective matches 'dop*'" in refused("objectives", "dop*")
    assert "Token-level Direct Preference Optimization" in rows["tdpo"]["summary"]
    code, out, _ = run("objectives")
    assert code == 0
    assert "--reward" in out


def test_a_run_shows_which_tokens_it_moved(run, refused, model, pairs, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("learning_rate: 0.05\nnum_train_epochs: 3\nbeta: 0.5\n")
    trained = tmp_path / "trained"
    assert (
        run("train", "--objective", "dpo", "-d", pairs, "-o", trained, "-m", model, "-c", config)[0]
        == 0
    )
    code, out, _ = run("inspect", "--against", trained, "--json")
    assert code == 0
    report = json.loads(out)
    assert len(report["pairs"]) == 2
    first = report["pairs"][0]["chosen"]
    assert len(first["tokens"]) == len(first["log_ratio"]) == len(first["kl"])
    assert any(abs(value) > 1e-3 for value in first["log_ratio"])
    margin = sum(first["log_ratio"]) - sum(report["pairs"][0]["rejected"]["log_ratio"])
    assert report["pairs"][0]["margin"] == pytest.approx(0.5 * margin, rel=1e-4)
    code, out, _ = run("inspect", "--against", trained, "--pairs", pairs, "--rows", 3)
    assert code == 0
    assert "reward accuracy" in out
    assert "chosen" in out or "rejected" in out
    # on a text, the tokens that differ most come first
    code, out, _ = run("inspect", "the cat sat", "-m", model, "--against", trained)
    assert code == 0
    assert "difference" in out
    assert "run.json" in refused("inspect", "--against", model)
    assert "no such file" in refused("inspect", "--against", trained, "--pairs", tmp_path / "no")
    assert "--pairs" in refused("inspect", "x", "-m", model, "--pairs", pairs)
    (trained / "run.json").write_text('{"state": "running"}')
    assert "not finished" in refused("inspect", "--against", trained)


def test_frozen_models_and_rewards_are_named_on_the_command_line(
    run, refused, model, pairs, tmp_path
):
    base = ("train", "-d", pairs, "-m", model, "-o", tmp_path / "out")
    assert run(*base, "--objective", "tgdpo", "--frozen", f"guide={model}")[0] == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["frozen"] == {"guide": model}
    base = (*base[:-1], tmp_path / "rl")
    assert "NAME=MODEL" in refused(*base, "--objective", "tgdpo", "--frozen", model)
    assert "guide=FOLDER" in refused(*base, "--objective", "tgdpo")
    rules = tmp_path / "rules.py"
    rules.write_text("def short(prompt, completion):\n    return -len(completion)\n")
    config = tmp_path / "c.yaml"
    config.write_text("samples: 2\nmax_new_tokens: 4\n")
    options = ("--objective", "rto", "--frozen", f"dpo={model}", "-c", config)
    assert "shrot" in refused(*base, *options, "--reward", f"{rules}:shrot")
    code, out, _ = run(*base, *options, "--reward", f"{rules}:short", "--json")
    assert code == 0
    assert json.loads(out)["state"] == "finished"


def test_a_reference_may_be_the_average_of_several_models(run, model, pairs, tmp_path):
    code, _, _ = run(
        "train",
        "--objective",
        "dpo",
        "-d",
        pairs,
        "-m",
        model,
        "-o",
        tmp_path / "out",
        "--reference",
        model,
        "--reference",
        model,
    )
    assert code == 0


def test_an_output_folder_that_exists(refused, model, pairs, tmp_path):
    assert "exists" in refused("train", "-d", pairs, "-o", tmp_path, "-m", model)


def test_output_that_cannot_be_written(refused, model, pairs, toy_paper, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert "cannot write" in refused("inspect", "x", "-m", model, "--html", file / "page.html")
    assert "folder" in refused("inspect", "x", "-m", model, "--html", tmp_path)
    assert "cannot write" in refused("train", "-d", pairs, "-o", file / "out", "-m", model)
    assert "cannot write" in refused("reproduce", "toy", "--output", file)
    assert "cannot write" in refused("demo", "--output", file / "report.html")


def test_combinations_that_cannot_work(refused, model):
    base = ("generate", "x", "-m", model)
    assert "--particles" in refused(*base, "--draft", "recycling", "--particles", 2)
    assert "--sampler" in refused(*base, "--draft", "recycling", "--sampler", "awrs")
    assert "evicts" in refused(*base, "--draft", "recycling", "--cache", "h2o:0.2")
    assert "--draft-model FILE" in refused(*base, "--draft", "mtp")
    assert "did you mean goose" in refused(*base, "--draft", "gose", "--draft-model", "x")
    assert "without a model" in refused(*base, "--draft", "goose", "--draft-model", "smollm2")
    assert "did you mean goose" in refused(*base, "--draft", "context+gose")
    both = refused(*base, "--draft", "goose+context", "--draft-model", "smollm2")
    assert "goes with one of dyspec, mtp, fspad, and 0 of them" in both
    assert "setting of mixture" in refused(*base, "--draft", "mixture:drafters=goose")
    assert "--particles" in refused(*base, "--cache", "h2o:0.2", "--particles", 2)
    assert "share" in refused(*base, "--cache", "h2o:much")
    assert "share" in refused(*base, "--cache", "h2o:7.5")
    assert "--against" in refused("inspect", "x", "-m", model, "-s", "divergence")
    assert "-t is -1.0" in refused(*base, "-t", "-1")
    assert "--temperature is -1.0" in refused(*base, "--temperature", "-1")
    for wrong in (0, 1_000_000_000):
        assert f"-p is {wrong}" in refused(*base, "-p", wrong)
    assert "--particles is 0" in refused(*base, "--particles", 0)
    assert "-n is 0" in refused(*base, "-n", 0)
    assert "--max-new-tokens is 0" in refused(*base, "--max-new-tokens=0")
    assert "-n is 0" in refused(*base, "-n0")
    for wrong in ("-1", "inf", "1e9"):
        assert "attempts" in refused("tokenize", "x", "-m", model, "--stochastok", wrong)


def test_no_traceback_unless_asked_for(run, monkeypatch):
    from tokenry.core.errors import InputError

    monkeypatch.setenv("TOKENRY_DEBUG", "1")
    with pytest.raises(InputError, match="empty"):
        run("inspect", "")


def test_interrupting_ends_with_130(run, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(catalogue, "listing", stop)
    assert run("papers")[:2] == (130, "")


def test_all_papers_are_gone_on_with(run, refused, monkeypatch, tmp_path):
    calls = []

    def paper(key):
        def reproduce(seed, scale):
            calls.append((key, seed, scale))
            if key == "b" and len(calls) == 2:
                raise KeyboardInterrupt
            return verdict(Table(), {"x": True})

        return Paper(None, key, key, "0.0", "sampler", "toys", "It plays.", reproduce)

    known = {key: paper(key) for key in "abc"}
    monkeypatch.setattr(catalogue, "papers", lambda: known)
    folder = str(tmp_path / "out")
    run("reproduce", "--all", "--output", folder, "--seed", "4")
    assert calls == [("a", 4, "full"), ("b", 4, "full")]
    other = refused("reproduce", "--all", "--resume", "--output", folder, "--seed", "5")
    assert "--seed 4" in " ".join(other.split())
    assert run("reproduce", "--all", "--resume", "--output", folder, "--seed", "4")[0] == 0
    assert calls[2:] == [("b", 4, "full"), ("c", 4, "full")]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "b.json", "c.json"]
    assert run("reproduce", "a", "--scale", "smoke", "--output", folder)[0] == 0
    assert (tmp_path / "out" / "a-smoke.json").is_file()
    assert "--all" in refused("reproduce")
