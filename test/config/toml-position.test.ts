/** The position scanner against TOML as people write it, and against text it cannot follow. */
import { parse } from 'smol-toml';
import { describe, expect, test } from 'vitest';
import { scanTomlPositions, type TomlPath, type TomlPositions } from '../../src/config/toml-position.ts';

const CASES: { name: string; text: string; expected: [TomlPath, number | undefined][] }[] = [
  {
    name: 'plain keys before and inside a table',
    text: 'a = 1\n\n[general]\nport = 1 # x = 2\n  host="h"\n',
    expected: [
      [['a'], 1],
      [['general'], 3],
      [['general', 'port'], 4],
      [['general', 'host'], 5],
      [['general', 'x'], undefined],
    ],
  },
  {
    name: 'each element of an array of tables has its own lines, and sub-tables belong to the newest',
    text: '[[users]]\nname = "a"\n[[users]]\n[users.extra]\nname = "b"\n[[users.list]]\nx = 1\n[[users.list]]\nx = 2\n',
    expected: [
      [['users'], 1],
      [['users', 0, 'name'], 2],
      [['users', 1], 3],
      [['users', 1, 'extra', 'name'], 5],
      [['users', 1, 'list', 1, 'x'], 9],
      [['users', 2], undefined],
    ],
  },
  {
    name: 'dotted and quoted keys are one path however they are written',
    text: 'general.port = 1\n"general" . \'host\' = 2\n["a.b"."c\\u0041\\""]\nd = 3\n[ x . y ]\nz = 1',
    expected: [
      [['general', 'port'], 1],
      [['general', 'host'], 2],
      [['general'], 1],
      [['a.b', 'cA"', 'd'], 4],
      [['x', 'y', 'z'], 6],
    ],
  },
  {
    name: 'what looks like a key or header inside a multi-line string is none',
    text: 'a = """\n[fake]\nb = 1 \\"""\n"""""\nc = \'\'\'\nd = 1\n\'\'\'\ne = 5\n',
    expected: [
      [['a'], 1],
      [['fake'], undefined],
      [['b'], undefined],
      [['c'], 5],
      [['d'], undefined],
      [['e'], 8],
    ],
  },
  {
    name: 'a hash or bracket inside a string starts nothing',
    text: 'a = "#["\nb = \'] # \\\'\nc = 3',
    expected: [
      [['b'], 2],
      [['c'], 3],
    ],
  },
  {
    name: 'inline tables and arrays that span lines',
    text: 'databases = [\n  # one\n  { name = "a", host = "h" },\n  { name = "b",\n host.x = [1,\n 2] },\n]\nafter = 1',
    expected: [
      [['databases', 0, 'host'], 3],
      [['databases', 1], 4],
      [['databases', 1, 'host', 'x'], 5],
      [['databases', 1, 'host', 'x', 1], 6],
      [['after'], 8],
    ],
  },
  {
    name: 'line ends of Windows and dates with a space',
    text: 'a = 1979-05-27 07:32:00\r\n[t]\r\nb = 1\r\n',
    expected: [[['t', 'b'], 3]],
  },
];

describe('scanTomlPositions', () => {
  for (const { name, text, expected } of CASES) {
    test(name, () => {
      const positions = scanTomlPositions(text);
      for (const [path, line] of expected) expect([path, positions.lineOf(path)]).toEqual([path, line]);
    });
  }

  test('every key that the parser finds has a line', () => {
    const visit = (positions: TomlPositions, value: unknown, path: TomlPath): void => {
      if (typeof value !== 'object' || value === null || value instanceof Date) return;
      for (const [key, inner] of Object.entries(value)) {
        const next = [...path, Array.isArray(value) ? Number(key) : key];
        expect([next, typeof positions.lineOf(next)]).toEqual([next, 'number']);
        visit(positions, inner, next);
      }
    };
    // Line ends inside an inline table are TOML 1.1, which the parser does not have to know.
    const texts = CASES.map((entry) =>
      entry.text.replace(',\n host', ', host').replace('[1,\n 2]', '[1, 2]'),
    );
    for (const text of texts) visit(scanTomlPositions(text), parse(text), []);
  });

  test('any cut and any mutation of a text ends, whatever it finds', () => {
    const whole = CASES.map((entry) => entry.text).join('\n');
    const seed = Math.floor(Math.random() * 2 ** 31);
    let state = seed;
    const random = (limit: number): number => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fff_ffff;
      return (state >> 8) % limit;
    };
    for (let end = 0; end < whole.length; end++) scanTomlPositions(whole.slice(0, end));
    const alphabet = '[]{}"\'\\#=.,\n a';
    for (let round = 0; round < 2000; round++) {
      const at = random(whole.length);
      const text = whole.slice(0, at) + alphabet[random(alphabet.length)] + whole.slice(at + random(3));
      expect(() => scanTomlPositions(text), `seed ${seed}, round ${round}`).not.toThrow();
    }
  });

  test('nesting far past the limit neither recurses without end nor throws', () => {
    expect(() => scanTomlPositions(`a = ${'['.repeat(200_000)}`)).not.toThrow();
    expect(() => scanTomlPositions(`a = ${'{b='.repeat(50_000)}`)).not.toThrow();
  });
});
