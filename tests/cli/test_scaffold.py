"""What `conformance scaffold` decides before anything heavy is imported: names, what is in the way,
and the turns that a template writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from conformance.scaffold.names import UnusableName, names_of
from conformance.scaffold.turns import Turns, Undecided, derive_turns
from tests.cli.test_cli import Call
from tests.cli.test_cli import call as call

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content "
    "+ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}"
    "{% endif %}" + CHATML
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
    "{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('no such role') }}{% endif %}"
    "{% endfor %}"
)
BOS_PER_TURN = INST.replace("{{ bos_token }}", "").replace("{{ '[INST]", "{{ bos_token + '[INST]")
THINKS = CHATML.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}<think>")
REFUSES = "{{ raise_exception('never') }}"
COUNTS = CHATML.replace("message.role +", "message.role + (loop.index0 // 2)|string +")
NOTHING_ENDS_IT = INST.replace(" + eos_token", "")


def turns(template: str | None, **subject: Any) -> Turns:
    declared = {"bos": "auto", "terminator": "</s>", "normalisation": "identity", **subject}
    return derive_turns(template, bos="<s>", eos="</s>", subject=declared)


def test_chatml_has_a_place_for_a_system_prompt() -> None:
    found = turns(CHATML, terminator="<|im_end|>")
    assert found.system == ("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n")
    assert found.default_system_prompt is None
    assert (found.question_end, found.answer_start) == ("<|im_end|>\n<|im_start|>assistant", "\n")
    assert (found.answer_end, found.next_question) == ("<|im_end|>", "\n<|im_start|>user\n")


def test_the_templates_own_system_prompt_is_the_default() -> None:
    found = turns(DEFAULT, terminator="<|im_end|>")
    assert found.default_system_prompt == "Be kind."
    assert found.text(["Hi"]).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")


@pytest.mark.parametrize(("bos", "opening"), [("auto", "[INST] "), ("prompt", "<s>[INST] ")])
def test_the_first_bos_is_the_builders_if_the_tokenizer_adds_none(bos: str, opening: str) -> None:
    found = turns(INST, bos=bos)
    assert found.system is None
    assert (found.opening, found.next_question) == (opening, "[INST] ")


def test_every_later_bos_is_the_builders() -> None:
    found = turns(BOS_PER_TURN)
    assert (found.opening, found.next_question) == ("[INST] ", "<s>[INST] ")


@pytest.mark.parametrize(
    ("normalisation", "question_end", "answer_start"),
    [("identity", " [/INST]", " "), ("metaspace", " [/INST] ", "")],
)
def test_the_space_before_an_answer_stands_where_the_tokenizer_wants_it(
    normalisation: str, question_end: str, answer_start: str
) -> None:
    found = turns(INST, normalisation=normalisation)
    assert (found.question_end, found.answer_start) == (question_end, answer_start)
    assert found.text(["Hi", "Ho", "Hu"]) == "[INST] Hi [/INST] Ho</s>[INST] Hu" + question_end


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, "no chat template"),
        (REFUSES, "refuses a plain dialogue (never)"),
        (THINKS, "'<|im_end|>\\n<think><|im_start|>assistant\\n' where an answer is asked for"),
        (NOTHING_ENDS_IT, "by which token a model learns to stop"),
        (COUNTS, "decide"),
        (CHATML + "{{ strftime_now('%Y') }}", "which date"),
        ("{{ messages[-1].content }}", "decide where it stands"),
    ],
)
def test_what_no_template_says_is_for_a_person(template: str | None, told: str) -> None:
    with pytest.raises(Undecided) as undecided:
        turns(template)
    assert told in str(undecided.value)


@pytest.mark.parametrize(
    ("project", "module", "backbone"),
    [
        ("my-qwen", "my_qwen", "MyQwenBackbone"),
        ("Robot.VLA_2", "robot_vla_2", "RobotVla2Backbone"),
    ],
)
def test_names_follow_from_that_of_the_project(
    project: str, module: str, backbone: str, tmp_path: Path
) -> None:
    names = names_of(project, "Qwen/Qwen2.5-0.5B-Instruct", tmp_path / project)
    assert (names.module, names.prompts) == (module, f"{module}_prompts")
    assert names.backbone == backbone
    assert names.backbone_id == "qwen2.5-0.5b-instruct"


@pytest.mark.parametrize(
    ("project", "told"),
    [
        ("class", "a keyword of Python"),
        ("json", "hide the module"),
        ("torch", "hide the module"),
        ("Transformers", "hide the module"),
        ("conformance", "hide the module"),
        ("2fast", "a letter first"),
        ("../up", "a letter first"),
        ("", "a letter first"),
        ("-x", "a letter first"),
        ("naïve", "a letter first"),
    ],
)
def test_names_that_cannot_be_are_refused(project: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableName, match=told):
        names_of(project, "acme/some-7b", tmp_path / "project")


def test_a_project_does_not_hide_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "my_vla"
    home.mkdir()
    (home / "my_vla.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(home), *sys.path])
    assert names_of("my_vla", "acme/some-7b", home).module == "my_vla"
    with pytest.raises(UnusableName, match="hide the module"):
        names_of("my_vla", "acme/some-7b", tmp_path / "elsewhere")


@pytest.mark.parametrize("hub_id", ["some-7b", "/some-7b", "acme/", "acme/..", "a b/c", "a/b'''c"])
def test_what_is_no_hub_id_is_refused(hub_id: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableName, match="ORG/NAME"):
        names_of("mine", hub_id, tmp_path / "mine")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["json", "--from", "."], "hide the module"),
        (["mine"], "give one of --from DIR, --from-cache and --download"),
        (
            ["mine", "--from", ".", "--from-cache"],
            "give one of --from DIR, --from-cache and --download",
        ),
        (["mine", "--from", "."], "has no config.json"),
    ],
)
def test_refusals_exit_with_2_and_leave_nothing(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("scaffold", *arguments, "--model", "acme/some-7b")
    assert result.status == 2
    assert told in " ".join(result.err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("replace", [[], ["--replace"]])
def test_what_is_there_is_in_the_way(
    replace: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("file",) if replace else ("mine", "file"):
        result = call("scaffold", name, "--model", "acme/some-7b", "--from", ".", *replace)
        assert result.status == 2
        assert "choose another name" in " ".join(result.err.split())
    assert (tmp_path / "mine" / "notes").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"
