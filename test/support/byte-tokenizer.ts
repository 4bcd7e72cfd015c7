/** The characters that byte-level tokenizers write bytes as (GPT-2's table). */
function byteCharacters(): string[] {
  const printable = (byte: number) =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCodePoint(printable(byte) ? byte : next++),
  );
}

/** Tokenizer files for a vocabulary of 259 or more: `<pad>`, `<s>`, `</s>` and a token for each byte. */
export function byteTokenizer(): Record<string, Record<string, unknown>> {
  const specials = ['<pad>', '<s>', '</s>'];
  const vocab = Object.fromEntries(
    [...specials, ...byteCharacters()].map((text, id) => [text, id]),
  );
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, use_regex: false };
  return {
    'tokenizer.json': {
      version: '1.0',
      added_tokens: specials.map((content, id) => ({
        ...{ id, content, special: true, normalized: false },
        ...{ single_word: false, lstrip: false, rstrip: false },
      })),
      normalizer: null,
      pre_tokenizer: byteLevel,
      post_processor: null,
      decoder: byteLevel,
      model: { type: 'BPE', vocab, merges: [] },
    },
    'tokenizer_config.json': {
      bos_token: '<s>',
      eos_token: '</s>',
      chat_template:
        "{% for m in messages %}{{ '<s>' if m.role == 'user' else '' }}{{ m.content }}{{ '</s>' if m.role == 'assistant' else '?' }}{% endfor %}",
    },
  };
}
