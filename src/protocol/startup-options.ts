/**
 * The `options` parameter of a startup packet: a command line for the server, of which only settings are taken.
 * Split as PostgreSQL's pg_split_opts does, read as process_postgres_switches and ParseLongOption do. Whether a
 * setting may be made is not decided here.
 */
import { PgError, SqlState } from './pg-error.ts';

/** White space as C's isspace() has it in the C locale. */
const SPACE = /[ \t\n\v\f\r]/;

/**
 * The settings in the order they were given, names with '-' turned into '_'. Takes `-c name=value`,
 * `-cname=value` and `--name=value`; anything else is FATAL 42601.
 */
export function parseStartupOptions(options: string): [name: string, value: string][] {
  const words = splitOptions(options);
  const settings: [string, string][] = [];
  for (let index = 0; index < words.length; index++) {
    const word = words[index] as string;
    if (word === '-c') {
      const next = words[++index];
      if (next === undefined) throw syntaxError('"-c" in the startup options needs a setting');
      settings.push(parseSetting(next));
    } else if (word.startsWith('-c')) {
      settings.push(parseSetting(word.slice(2)));
    } else if (word.startsWith('--') && word.length > 2) {
      settings.push(parseSetting(word.slice(2)));
    } else {
      throw syntaxError('only "-c name=value" and "--name=value" are accepted in the startup options');
    }
  }
  return settings;
}

/** Words between white space; a backslash takes the next character as it is, a lone one at the end is dropped. */
function splitOptions(options: string): string[] {
  const words: string[] = [];
  let word: string | null = null;
  for (let at = 0; at < options.length; at++) {
    let character = options[at] as string;
    if (SPACE.test(character)) {
      if (word !== null) words.push(word);
      word = null;
      continue;
    }
    if (character === '\\') character = options[++at] ?? '';
    word = (word ?? '') + character;
  }
  if (word !== null) words.push(word);
  return words;
}

function parseSetting(setting: string): [string, string] {
  const equals = setting.indexOf('=');
  if (equals < 1) throw syntaxError('a setting in the startup options needs a name, "=" and a value');
  return [setting.slice(0, equals).replaceAll('-', '_'), setting.slice(equals + 1)];
}

function syntaxError(message: string): PgError {
  return new PgError({
    code: SqlState.SyntaxError,
    message,
    severity: 'FATAL',
    reason: 'startup_options',
  });
}
