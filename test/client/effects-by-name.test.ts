import { expect, test } from 'vitest';
import { EffectsByName } from '../../src/client/effects-by-name.ts';
import { UNKNOWN_EFFECTS } from '../../src/client/session-effects.ts';
import { NAMES_MAX } from '../../src/session/statement-names.ts';
import { NO_EFFECTS, type StatementEffects } from '../../src/sql/statement.ts';

const SETS: StatementEffects = { ...NO_EFFECTS, plain: false, settings: ['search_path'] };
const PINS: StatementEffects = { ...NO_EFFECTS, plain: false, pins: ['LISTEN'] };

function note(table: EffectsByName, name: string, effects: StatementEffects): void {
  const bytes = Buffer.from(`.${name}.`, 'latin1');
  table.note(bytes, 1, bytes.length - 1, effects);
}

function find(table: EffectsByName, name: string): StatementEffects {
  const bytes = Buffer.from(name, 'latin1');
  return table.find(bytes, 0, bytes.length);
}

test('a name stands for what was noted last, and for nothing once a plain statement has it', () => {
  const table = new EffectsByName();
  expect(find(table, 'a')).toBe(NO_EFFECTS);
  note(table, 'a', SETS);
  note(table, 'b', SETS);
  note(table, 'a', PINS);
  expect([find(table, 'a'), find(table, 'b'), find(table, 'ab')]).toEqual([PINS, SETS, NO_EFFECTS]);
  note(table, 'a', NO_EFFECTS);
  expect([find(table, 'a'), find(table, 'b')]).toEqual([NO_EFFECTS, SETS]);
  table.clear();
  expect(find(table, 'b')).toBe(NO_EFFECTS);
});

test('a name that finds no room may have done anything, one that is known is still noted anew', () => {
  const table = new EffectsByName();
  for (let count = 0; count < NAMES_MAX; count++) note(table, `p${count}`, SETS);
  expect(find(table, 'late')).toBe(NO_EFFECTS);
  note(table, 'late', SETS);
  expect(find(table, 'late')).toBe(UNKNOWN_EFFECTS);
  note(table, 'p7', PINS);
  expect([find(table, 'p7'), find(table, 'p8')]).toEqual([PINS, SETS]);
  table.clear();
  expect(find(table, 'late')).toBe(NO_EFFECTS);
});
