"""Several replies to one prompt: it is computed once, and each reply goes on from there in blocks of its own."""

from engine import Engine, EngineConfig, SamplingParams

PROMPT = """A list of names for a small bakery that opens at five in the morning, stands between a church and a fire
station, sells nothing but bread, and is run by two sisters who used to repair clocks. The names are short, easy to
remember, and none of them is a pun.

The best name on the list is"""

params = SamplingParams(n=6, temperature=0.9, top_p=0.95, max_tokens=10, seed=7, stop="\n", logprobs=0)
with Engine("demo", EngineConfig(device_bytes="128MiB", host_bytes=0)) as engine:
    result = engine.generate(PROMPT, params)
    computed = engine.stats()["engine"]["prefilled_tokens"]

for sample in result.samples:
    assert sample.logprobs is not None
    mean = sum(each.logprob for each in sample.logprobs) / len(sample.logprobs)
    print(f"{mean:6.2f}  {sample.text.strip()}")
asked = len(result.samples) * result.usage.prompt_tokens
print(f"{1 - computed / asked:.0%} of the prompts came from the cache")
