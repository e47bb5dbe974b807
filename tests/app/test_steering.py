"""--steer: the order in which controllers act, and what the command gives each of them."""

import pytest

from tokenry.app.steering import Steering
from tokenry.decode.constraints.length import Length
from tokenry.decode.generate import ends
from tokenry.decode.steering.ending import Ending
from tokenry.decode.steering.ngram_style import NGramStyle
from tokenry.decode.steering.selective_contrast import SelectiveContrastProcessor
from tokenry.decode.steering.stopping import StoppingControl
from tokenry.model.hub import Loaded


@pytest.fixture
def loaded(tiny_llama_text, tiny_tokenizer):
    return Loaded(tiny_llama_text, tiny_tokenizer)


@pytest.fixture
def style(tmp_path):
    path = tmp_path / "style.txt"
    path.write_text("the cat sat\n\nthe mat\n")
    return f"ngram-style:ngrams={path}"


def test_what_ends_a_text_has_the_last_word_however_they_are_typed(loaded, style):
    typed = ["ending", "stopping:expected_length=9", style, "uscd:negative=a"]
    least = Length(2, None, loaded.tokenizer)
    control = Steering.read(typed, ["cat"]).control(loaded, "the cat", 0.5, least)
    assert [type(processor) for processor in control.processors] == [
        SelectiveContrastProcessor, NGramStyle, StoppingControl, Ending, Ending,
    ]  # fmt: skip
    contrast, ngrams, stopping, _, _ = control.processors
    assert contrast.prompt_length == len(loaded.tokenizer("the cat")["input_ids"])
    assert list(contrast.negative) == loaded.tokenizer("a")["input_ids"]
    assert ngrams.strength == 0.1
    assert stopping.floor == pytest.approx(0.1)  # (1 - h) / h = 9
    assert stopping.sampling_temperature == 0.5


def test_stop_strings_of_all_options_are_one(loaded):
    control = Steering.read(["ending:strings=mat,x"], ["cat"]).control(loaded, "the", 1.0, None)
    assert len(control.processors) == 1
    assert control.cut("a mat, a cat") == "a "
    assert control.cut("a cat, a mat") == "a "
    assert control.certain("a c") == "a "


def test_settings_of_the_paper_are_reached(loaded):
    typed = ["stopping:bias=-2,start=3,floor=0.2", "uscd:negative=a,weight=-0.2,space=logit"]
    contrast, stopping = Steering.read(typed).control(loaded, "the", 0.0, None).processors
    assert (stopping.bias, stopping.start, stopping.floor) == (-2, 3, 0.2)
    assert stopping.sampling_temperature == 1.0  # at temperature 0 nothing is sampled
    assert (contrast.weight, contrast.space) == (-0.2, "logit")
    assert stopping.hazard_after(2) == 0.0
    assert sorted(ends(*loaded)) == sorted(stopping.stop)
