// Answers images with a saved model's ONNX file in ONNX Runtime Web, the WebAssembly that browsers run: no Python, no torch.
//     node onnx_web.mjs model.onnx image_size pixels.gray ...
// Each pixels file holds image_size x image_size bytes, as `open_square(file, image_size).tobytes()` gives them.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const [model, size, ...files] = process.argv.slice(2);
const side = Number(size);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(model));
const answers = [];
for (const file of files) {
  const images = new ort.Tensor("uint8", new Uint8Array(readFileSync(file)), [1, 1, side, side]);
  const { probabilities, maps } = await session.run({ images });
  answers.push({ probabilities: Array.from(probabilities.data), maps: maps.dims });
}
console.log(JSON.stringify(answers));
