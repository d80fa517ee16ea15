// Reads every array of a group with zarrita: node read.mjs FEATURES.zarr SPLIT OUT NAME...
// Writes the bytes of each to OUT/NAME, and prints a JSON object of shapes, types and attributes.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import FileSystemStore from "@zarrita/storage/fs";
import * as zarr from "zarrita";

const [features, split, out, ...names] = process.argv.slice(2);
const group = await zarr.open(zarr.root(new FileSystemStore(features)).resolve(split), { kind: "group" });
const found = {};
for (const name of names) {
  const array = await zarr.open(group.resolve(name), { kind: "array" });
  const { data, shape } = await zarr.get(array);
  await writeFile(join(out, name), new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  found[name] = { shape, type: array.dtype, kind: data.constructor.name, attributes: array.attrs };
}
console.log(JSON.stringify(found));
