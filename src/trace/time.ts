// Moments in traces: RFC 3339 text with nanoseconds, as Go writes it, and ns since 1970.

const RFC3339 =
  /^(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))$/;

/** ns since 1970 of RFC 3339 text, or undefined where it is none. */
export function parseTime(text: string): bigint | undefined {
  const match = RFC3339.exec(text);
  if (match === null) return undefined;
  const [, date, clock, fraction = '', , sign, hours = '0', minutes = '0'] = match;
  const ms = Date.parse(`${date}T${clock}Z`);
  if (Number.isNaN(ms) || Number(hours) > 23 || Number(minutes) > 59) return undefined;
  const offsetMinutes = (Number(hours) * 60 + Number(minutes)) * (sign === '-' ? -1 : 1);
  return BigInt(ms - offsetMinutes * 60_000) * 1_000_000n + BigInt(fraction.padEnd(9, '0'));
}

/** RFC 3339 text of ns since 1970, in UTC; zeros at the end of the fraction are left out. */
export function formatTime(ns: bigint): string {
  const second = 1_000_000_000n;
  const rest = ((ns % second) + second) % second;
  const whole = new Date(Number((ns - rest) / 1_000_000n)).toISOString().slice(0, 19);
  const fraction = rest.toString().padStart(9, '0').replace(/0+$/, '');
  return fraction === '' ? `${whole}Z` : `${whole}.${fraction}Z`;
}
