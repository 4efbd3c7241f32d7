/**
 * Reads constants out of syntax trees: strings through casts to text and through ||, booleans, names. What is not
 * plainly a constant is null, never a guess. It decides nothing.
 */
import type { TreeNode } from './parser.ts';
import { constantBoolean } from './settings.ts';

/** The value as a node, or null when it is none (a list, a scalar, nothing). */
export function asNode(value: unknown): TreeNode | null {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as TreeNode) : null;
}

/** The value as a list; an absent list is empty. */
export function asList(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

/** The strings of a list of String nodes: a qualified name, outermost first. */
export function namesOf(list: unknown): string[] {
  const names: string[] = [];
  for (const item of asList(list)) {
    const value = asNode(asNode(item)?.['String'])?.['sval'];
    names.push(typeof value === 'string' ? value : '');
  }
  return names;
}

/** The last part of a qualified name, '' when there is none. */
export function lastName(list: unknown): string {
  return namesOf(list).at(-1) ?? '';
}

/** A constant string: a literal, its cast to text, or constants joined by ||. */
export function constantText(value: unknown): string | null {
  const parts: string[] = [];
  const pending: unknown[] = [value];
  while (pending.length > 0) {
    const node = asNode(pending.pop());
    if (node === null) return null;
    const constant = asNode(node['A_Const']);
    if (constant !== null) {
      const text = literalText(constant);
      if (text === null) return null;
      parts.push(text);
      continue;
    }
    const cast = asNode(node['TypeCast']);
    if (cast !== null) {
      if (!isPlainText(asNode(cast['typeName']))) return null;
      pending.push(cast['arg']);
      continue;
    }
    const collate = asNode(node['CollateClause']);
    if (collate !== null) {
      pending.push(collate['arg']);
      continue;
    }
    const operation = asNode(node['A_Expr']);
    if (operation === null || operation['kind'] !== 'AEXPR_OP' || lastName(operation['name']) !== '||')
      return null;
    pending.push(operation['rexpr'], operation['lexpr']);
  }
  return parts.join('');
}

function literalText(constant: TreeNode): string | null {
  if (constant['isnull'] === true) return null;
  const text = asNode(constant['sval']);
  // An empty string has no value in the parser's JSON.
  if (text !== null) return typeof text['sval'] === 'string' ? text['sval'] : '';
  const float = asNode(constant['fval'])?.['fval'];
  if (typeof float === 'string') return float;
  const integer = asNode(constant['ival']);
  if (integer !== null) return String(integer['ival'] ?? 0);
  return null;
}

/** Only text itself: varchar(4) or "char" would cut the value. */
function isPlainText(type: TreeNode | null): boolean {
  if (type === null || type['arrayBounds'] !== undefined || type['typmods'] !== undefined) return false;
  const names = namesOf(type['names']);
  return names.at(-1) === 'text' && (names.length === 1 || names[0] === 'pg_catalog');
}

/** A constant boolean: true, 'on', 't'::boolean; NULL counts as false, which is how set_config takes it. */
export function constantFlag(value: unknown): boolean | null {
  const node = asNode(value);
  const cast = asNode(node?.['TypeCast']);
  if (cast !== null) {
    const names = namesOf(asNode(cast['typeName'])?.['names']);
    return names.at(-1) === 'bool' || names.at(-1) === 'boolean' ? constantFlag(cast['arg']) : null;
  }
  const constant = asNode(node?.['A_Const']);
  if (constant === null) return null;
  if (constant['isnull'] === true) return false;
  const flag = asNode(constant['boolval']);
  if (flag !== null) return flag['boolval'] === true;
  const text = asNode(constant['sval'])?.['sval'];
  return typeof text === 'string' ? constantBoolean(text) : null;
}
