import { describe, expect, test } from 'vitest';
import { splitStatements } from '../../src/admin/command-text.ts';

const words = (text: string): string[][] =>
  splitStatements(text).map((tokens) => tokens.map((token) => token.text));

describe('a text is cut into statements of words', () => {
  test.each<[string, string, string[][]]>([
    ['nothing', '', []],
    ['blanks, comments and semicolons only', ' ;;\n-- a comment; with one\n/* and ; another */ ; ', []],
    ['one statement without a semicolon', 'SHOW POOLS', [['SHOW', 'POOLS']]],
    [
      'two statements on one line',
      'show a;show b;',
      [
        ['show', 'a'],
        ['show', 'b'],
      ],
    ],
    ['a comment between words', 'SHOW/* x */POOLS--;', [['SHOW', 'POOLS']]],
    ['a nested comment', 'SHOW /* a /* b */ ; c */ LISTS', [['SHOW', 'LISTS']]],
    ['a line comment that ends', 'SHOW -- x\n POOLS', [['SHOW', 'POOLS']]],
    ['a name with a hyphen', 'RECONNECT my-db-1', [['RECONNECT', 'my-db-1']]],
    ['a comment directly behind a name', 'RECONNECT db--x', [['RECONNECT', 'db']]],
    [
      'quotes with quotes, semicolons and comments inside',
      `X "a""b;--" 'it''s /*'`,
      [['X', 'a"b;--', "it's /*"]],
    ],
    ['symbols one by one', 'SET a=-1', [['SET', 'a', '=', '-', '1']]],
    ['letters of any script', 'RECONNECT größe_数', [['RECONNECT', 'größe_数']]],
  ])('%s', (_name, text, statements) => expect(words(text)).toEqual(statements));

  test('kinds tell a name from a text that looks like it', () => {
    expect(splitStatements(`a "a" 'a' =`)[0]?.map(({ kind }) => kind)).toEqual([
      'word',
      'quoted',
      'string',
      'symbol',
    ]);
  });

  test.each([
    ['"', 'unterminated quoted identifier'],
    [`SHOW 'POOLS`, 'unterminated quoted string'],
    [`SHOW 'POOLS''`, 'unterminated quoted string'],
    ['SHOW POOLS /* ', 'unterminated comment'],
    ['/* /* */', 'unterminated comment'],
  ])('%s has no end', (text, message) => {
    expect(() => splitStatements(text)).toThrow(expect.objectContaining({ code: '42601', message }));
  });

  test.each(['"', "'", '/*', '-', '/', 'a-', '""'])('64 KiB of %s takes no longer than it must', (piece) => {
    const text = piece.repeat(65_536 / piece.length);
    const startedAtMs = performance.now();
    try {
      splitStatements(text);
    } catch (error) {
      expect(error).toMatchObject({ code: '42601' });
    }
    expect(performance.now() - startedAtMs).toBeLessThan(1_000);
  });
});
