"""Reference backbones: causal language models, wired for vision-language and robot-action models.

`backbones.registry.get_llm_backbone_and_tokenizer(id)` builds one; `backbones.contract` says what a
backbone is; `backbones.mistral`, `backbones.llama2` and `backbones.phi` are the families, one file
each.
"""
