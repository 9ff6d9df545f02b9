"""The policy: a causal language model, its tokenizer and its value head; how they load, save and read text."""
