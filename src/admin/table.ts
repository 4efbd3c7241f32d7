/** Rows of the console and how they stand on the wire, in text and in binary format. Knows no command. */
import { BackendMessage } from '../protocol/codes.ts';
import { encodeRowDescription, type MessageWriter } from '../protocol/message-writer.ts';

/** The two types that the console's columns have, as in PgBouncer's. */
export interface Column {
  readonly name: string;
  readonly type: 'text' | 'int4';
}

/** One value per column; a number stands in an int4 column and is a whole one. */
export type Row = readonly (string | number | null)[];

/** Result formats as a Bind asks for them: none (all text), one for all columns, or one each. 1 is binary. */
export type ResultFormats = readonly (0 | 1)[];

/** All columns in text format. */
export const TEXT_FORMAT: ResultFormats = [];

/** RowDescription. Type OIDs and sizes as in pg_type.dat. */
export function describeColumns(columns: readonly Column[], formats: ResultFormats): Buffer {
  return encodeRowDescription(
    columns.map(({ name, type }, index) => ({
      name,
      typeOid: type === 'int4' ? 23 : 25,
      typeSize: type === 'int4' ? 4 : -1,
      format: formatOf(formats, index),
    })),
  );
}

/** DataRow. */
export function writeRow(writer: MessageWriter, row: Row, formats: ResultFormats): void {
  writer.begin(BackendMessage.DataRow).int16(row.length);
  for (let index = 0; index < row.length; index++) {
    const value = row[index] as Row[number];
    if (value === null) {
      writer.int32(-1);
    } else if (typeof value === 'number' && formatOf(formats, index) === 1) {
      writer.int32(4).int32(value);
    } else {
      const text = typeof value === 'number' ? String(value) : value;
      writer.int32(Buffer.byteLength(text)).utf8(text);
    }
  }
  writer.end();
}

function formatOf(formats: ResultFormats, index: number): 0 | 1 {
  return (formats.length === 1 ? formats[0] : formats[index]) ?? 0;
}

/** A count for an int4 column: no limit shows as 0, as PgBouncer writes it. */
export function int4(value: number): number {
  return Number.isFinite(value) ? Math.min(Math.max(Math.round(value), 0), INT4_MAX) : 0;
}

const INT4_MAX = 0x7fff_ffff;
