"""One system prompt, many users: it is computed for the first of them and found by all others."""

from engine import Engine, EngineConfig, SamplingParams

SYSTEM = """You answer for the lending desk of a town library. Books are lent for four weeks, films for one week, and
nothing is lent to readers who owe more than ten euros. A loan can be extended twice unless somebody else waits for the
book. Reserved books are kept for seven days at the desk on the ground floor. The reading room on the second floor is open
to everybody, lent to nobody, and closes half an hour before the house does. Answer in one short sentence, say nothing
that is not written here, and send whoever asks for something else to the desk, which is open from ten to six."""
QUESTIONS = [
    "How long may I keep a book?",
    "How long may I keep a film?",
    "I owe twelve euros. May I take a book home?",
    "Where do I fetch what I have reserved?",
    "Can I extend a loan a third time?",
    "When does the reading room close?",
]

chats = [
    [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}] for question in QUESTIONS
]
with Engine("demo", EngineConfig(device_bytes="256MiB", host_bytes=0)) as engine:
    results = engine.generate(chats, SamplingParams(max_tokens=12))

for question, result in zip(QUESTIONS, results, strict=True):
    print(f"{result.usage.prefilled_tokens:4} of {result.usage.prompt_tokens} tokens computed: {question}")
    print(f"     {result.text.strip()}")
cached = sum(result.usage.cached_tokens for result in results)
print(
    f"{cached / sum(result.usage.prompt_tokens for result in results):.0%} of the prompts came from the cache"
)
