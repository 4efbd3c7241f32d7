/** The Markdown tables of all keys, which README.md carries between two markers. Reads the schema and no file. */
import { describeType, isSecret, type KeySpec } from './key-spec.ts';
import { SCHEMA, type SchemaSection } from './schema.ts';
import { headerOf } from './section-reader.ts';

export const REFERENCE_BEGIN = '<!-- config reference: begin -->';
export const REFERENCE_END = '<!-- config reference: end -->';

/** All sections, each a heading, a sentence and a table of key, type, default and meaning. */
export function renderReference(): string {
  return SCHEMA.map(renderSection).join('\n');
}

/** The text with the part between the markers replaced. Throws a RangeError when a marker is missing. */
export function insertReference(readme: string): string {
  const begin = readme.indexOf(REFERENCE_BEGIN);
  const end = readme.indexOf(REFERENCE_END);
  if (begin < 0 || end < begin) throw new RangeError('the markers of the config reference are missing');
  const head = readme.slice(0, begin + REFERENCE_BEGIN.length);
  return `${head}\n${renderReference()}${readme.slice(end)}`;
}

/** The default as the reference and the commented lines of the sample files show it; empty when there is none. */
export function defaultLiteral(spec: KeySpec<unknown>): string {
  if (spec.isRequired || spec.defaultValue === null) return '';
  return spec.literal;
}

function renderSection(section: SchemaSection): string {
  const lines = [
    `#### ${headerOf(section)} in ${section.file}`,
    '',
    section.title,
    '',
    '| Key | Type | Default | Meaning |',
    '|---|---|---|---|',
    ...section.specs.map(renderKey),
    '',
  ];
  return lines.join('\n');
}

function renderKey(spec: KeySpec<unknown>): string {
  const key = isSecret(spec.kind) ? `\`${spec.key}\`, \`${spec.key}_file\`` : `\`${spec.key}\``;
  const cells = [key, describeType(spec), defaultCell(spec), meaningCell(spec)];
  return `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
}

function defaultCell(spec: KeySpec<unknown>): string {
  if (spec.isRequired) return 'required';
  if (spec.defaultValue === Number.POSITIVE_INFINITY && spec.literal !== '0') return 'no limit';
  const literal = defaultLiteral(spec);
  return literal === '' ? 'none' : `\`${literal}\``;
}

function meaningCell(spec: KeySpec<unknown>): string {
  const also = spec.alias === null ? '' : ` Also \`${spec.alias}\`.`;
  const twin = spec.kind.name === 'secrets' ? ' The file has one on each line.' : '';
  const warning = spec.warning === null ? '' : ` No effect: ${spec.warning}.`;
  return spec.meaning + also + twin + warning;
}
