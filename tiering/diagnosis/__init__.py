"""What the difference between two prompts looks like, in which part of a prompt it lies, and what to do about it.

Nothing here touches a cache, blocks on anything but the processor, or keeps state: any thread may call it.

From a live engine, where the cached tokens are known from the difference on:

    difference(asked_ids, cached_ids, at_token, cached_from=at_token, tokenizer=tokenizer, messages=messages)

and where both are known whole:

    difference(asked_ids, cached_ids, first_difference(asked_ids, cached_ids), tokenizer=tokenizer)

Without a tokenizer the answer has ids only: that is the call for whoever may not see text. `messages` are those that
the prompt was made of, if it was a chat: they give the answer its section, and prove that a turn was written anew.
"""
