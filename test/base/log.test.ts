/** One event is one line in every format, and secrets and escape sequences do not get through. */
import { describe, expect, test } from 'vitest';
import { createLogger, type LogFormat } from '../../src/base/log.ts';
import { Secret } from '../../src/base/secret.ts';

function logged(format: LogFormat, write: (log: ReturnType<typeof createLogger>) => void): string[] {
  const lines: string[] = [];
  write(createLogger({ format, level: 'debug', destination: { write: (line) => lines.push(line) } }));
  return lines;
}

const FORMATS: LogFormat[] = ['text', 'json', 'json_flattened'];
const TIME = '\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z';

describe('text', () => {
  test('time, level, sentence, fields; strings are quoted only where they must be', () => {
    const [line] = logged('text', (log) => {
      log
        .child({ session: 7 })
        .info({ user: 'a b', peer: '127.0.0.1:5', list: [1], none: null }, 'logged in');
    });
    expect(line).toMatch(
      new RegExp(
        `^${TIME} INFO {2}logged in session=7 user="a b" peer=127.0.0.1:5 list=\\[1\\] none=null\\n$`,
      ),
    );
  });

  test('an error is its sentence and code; its stack comes with severe ones only', () => {
    const error = Object.assign(new Error('no "x"'), { code: 'ENOENT' });
    const [mild, severe] = logged('text', (log) => {
      log.warn({ err: error }, 'm');
      log.error({ err: error }, 'm');
    });
    expect(mild).toMatch(/ WARN {2}m err="no \\"x\\" \(ENOENT\)"\n$/);
    expect(severe).toContain('\\n    at ');
    expect(severe!.match(/\n/g)).toHaveLength(1);
  });
});

describe('JSON', () => {
  test('json nests the fields, json_flattened does not', () => {
    const write = (log: ReturnType<typeof createLogger>): void => log.info({ user: 'a' }, 'hello');
    const nested = JSON.parse(logged('json', write)[0]!);
    const flat = JSON.parse(logged('json_flattened', write)[0]!);
    expect(nested).toEqual({
      timestamp: expect.stringMatching(TIME),
      level: 'info',
      fields: { message: 'hello', user: 'a' },
    });
    expect(flat).toEqual({ timestamp: expect.any(String), level: 'info', message: 'hello', user: 'a' });
  });
});

describe.each(FORMATS)('%s', (format) => {
  test('secrets are **** by their name at three depths, in child bindings, and by their type anywhere', () => {
    const lines = logged(format, (log) => {
      log.info({ token: 'XX1', password: 'XX2', jwt: { a: 'XX3' } });
      log.info({ config: { serverPassword: 'XX4', passwords: ['XX5'] }, a: { b: { secret: 'XX6' } } });
      log.child({ authorization: 'XX7' }).info({ deep: { deep: { deep: { deep: new Secret('XX8') } } } });
    });
    expect(lines).toHaveLength(3);
    expect(lines.join('')).not.toMatch(/XX\d/);
    expect(lines.join('').match(/\*{4}/g)!.length).toBeGreaterThanOrEqual(8);
  });

  test('an error that carries a payload or a query does not bring it along', () => {
    const error = Object.assign(new Error('refused', { cause: new Error('XX1') }), {
      payload: { sub: 'XX2' },
      parameters: ['XX3'],
    });
    const [line] = logged(format, (log) => log.error({ err: error }, 'x'));
    expect(line).toContain('refused');
    expect(line).not.toMatch(/XX\d/);
  });

  test('a client cannot begin a line of its own or speak to the terminal', () => {
    const evil = 'a\nb\r\u001b[31m\u0085\u2028';
    const [line] = logged(format, (log) => log.info({ user: evil, [evil]: 1 }, evil));
    expect(line!.indexOf('\n')).toBe(line!.length - 1);
    expect(line).not.toMatch(/[\r\u001b]/);
  });

  test('what is below the level is not written', () => {
    expect(logged(format, (log) => log.trace('x'))).toEqual([]);
  });
});
