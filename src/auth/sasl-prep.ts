/**
 * SASLprep (RFC 4013) as PostgreSQL applies it to passwords: what cannot be prepared is used as it is, byte by
 * byte (pg_saslprep, src/common/saslprep.c).
 */

/** RFC 3454 table C.1.2. It goes before the next table, which also lists U+200B. */
const NON_ASCII_SPACE = /[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000]/g;
/** RFC 3454 table B.1. */
const MAPPED_TO_NOTHING = /\u00ad|\u034f|\u1806|[\u180b-\u180d]|\u200c|\u200d|\u2060|[\ufe00-\ufe0f]|\ufeff/g;
/** RFC 3454 tables C.2 to C.9: control, private use, non-character, surrogate, unfit for plain text, tagging. */
const PROHIBITED =
  /[\p{Cc}\p{Co}\p{Cs}\p{Noncharacter_Code_Point}\u06dd\u070f\u180e\u2028\u2029\u2061-\u2063\u206a-\u206f\ufff9-\ufffd\u2ff0-\u2ffb\u200e\u200f\u202a-\u202e\u{1d173}-\u{1d17a}\u{e0001}\u{e0020}-\u{e007f}]/u;
/**
 * Characters outside the basic plane that Unicode 3.2 had not assigned (table A.1): emoji above all. The table's few
 * gaps inside the basic plane are left out; NFKC does not change most of what stands there today.
 */
const UNASSIGNED_ASTRAL =
  /[\u{10000}-\u{102ff}\u{10350}-\u{103ff}\u{10450}-\u{1cfff}\u{1d800}-\u{1ffff}\u{2a6e0}-\u{2f7ff}\u{2fa20}-\u{e0000}]/u;
const RIGHT_TO_LEFT = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}]/u;
const LEFT_TO_RIGHT = /[^\P{L}\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}]/u;

/** The prepared password, or the password itself when it is ASCII, prohibited, or would become empty. */
export function saslPrep(password: string): string {
  if (/^[\x00-\x7f]*$/.test(password)) return password;
  const prepared = password.replace(NON_ASCII_SPACE, ' ').replace(MAPPED_TO_NOTHING, '').normalize('NFKC');
  if (prepared === '' || PROHIBITED.test(prepared) || UNASSIGNED_ASTRAL.test(prepared)) return password;
  if (RIGHT_TO_LEFT.test(prepared)) {
    const characters = [...prepared];
    const framed = RIGHT_TO_LEFT.test(characters[0]!) && RIGHT_TO_LEFT.test(characters.at(-1)!);
    if (!framed || LEFT_TO_RIGHT.test(prepared)) return password;
  }
  return prepared;
}
