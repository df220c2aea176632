// onnxruntime-node, or onnxruntime-web (wasm) where the first argument says so. Arguments and answer as in `turns.py`.
"use strict";
const fs = require("fs");
const [kind, folder, image, shape, rounds, answer, ...paths] = process.argv.slice(2);
const ort = require(require.resolve(kind === "web" ? "onnxruntime-web" : "onnxruntime-node", { paths: [folder] }));
const sizes = shape.split("x").map(Number);
const bytes = fs.readFileSync(image);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);

// Milliseconds of the processor so far: those of one thread are the same on a busy machine.
function spent() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e3;
}

async function main() {
  if (kind === "web") ort.env.wasm.numThreads = 1;
  const how = { intraOpNumThreads: 1, interOpNumThreads: 1, graphOptimizationLevel: "all" };
  if (kind === "web") how.executionProviders = ["wasm"];
  const runs = [];
  for (const path of paths) {
    const session = await ort.InferenceSession.create(kind === "web" ? new Uint8Array(fs.readFileSync(path)) : path, how);
    const feed = { [session.inputNames[0]]: new ort.Tensor("float32", values, sizes) };
    runs.push(async () => (await session.run(feed))[session.outputNames[0]].data);
  }
  const outputs = [];
  for (const run of runs) outputs.push(Array.from(await run()));
  const times = runs.map(() => []);
  for (let turn = 0; turn < Number(rounds); turn++) {
    const order = runs.map((_, number) => number);
    if (turn % 2) order.reverse();
    for (const number of order) {
      const started = spent();
      await runs[number]();
      times[number].push(spent() - started);
    }
  }
  const versions = ort.env.versions || {};
  const version = versions[kind] || versions.common || "?";
  fs.writeFileSync(answer, JSON.stringify({ version, outputs, times }));
}

main().then(() => process.exit(0), (error) => { console.error(String(error)); process.exit(1); });
