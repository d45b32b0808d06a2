// The WWW-Authenticate header: which schemes a server offers, with their parameters (RFC 9110,
// section 11). Acting on them is registry-auth.ts.

/** One offered scheme; scheme and parameter names in lower case. */
export interface Challenge {
  scheme: string;
  parameters: Map<string, string>;
}

const TOKEN = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y;

/** Parses the values of all WWW-Authenticate headers; what is malformed ends the list quietly. */
export function parseChallenges(header: string | string[] | undefined): Challenge[] {
  const text = Array.isArray(header) ? header.join(', ') : (header ?? '');
  const found: Challenge[] = [];
  let at = 0;
  const blanks = (also: string) => {
    while (
      at < text.length &&
      (text[at] === ' ' || text[at] === '\t' || also.includes(text[at]!))
    ) {
      at++;
    }
  };
  const token = () => {
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(text);
    if (match === null) return undefined;
    at = TOKEN.lastIndex;
    return match[0].toLowerCase();
  };
  const quoted = () => {
    let value = '';
    at++;
    while (at < text.length && text[at] !== '"') {
      if (text[at] === '\\') at++;
      value += text[at] ?? '';
      at++;
    }
    at++;
    return value;
  };
  for (;;) {
    blanks(',');
    const start = at;
    const name = token();
    if (name === undefined) return found;
    blanks('');
    const last = found.at(-1);
    if (text[at] !== '=' || last === undefined) {
      found.push({ scheme: name, parameters: new Map() });
      // A scheme may be followed by a token68 instead of parameters; none that we use is.
      if (at === start + name.length && at < text.length && text[at] !== ',') return found;
      continue;
    }
    at++;
    blanks('');
    if (text[at] === '"') last.parameters.set(name, quoted());
    else {
      const end = text.slice(at).search(/[\s,]|$/);
      last.parameters.set(name, text.slice(at, at + end));
      at += end;
    }
  }
}
