// Opens a file with speedscope's importer and prints what it sees: a profile each with its total and, by frame, what is its own
// and what is its own and its callees'. Arguments: the folder of speedscope's files, the file.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [folder, file] = process.argv.slice(2);
const names = fs.readdirSync(folder).filter((name) => name.endsWith(".js"));
// The modules alone: what the page does when it starts is left out.
const modules = (begin) =>
  fs
    .readFileSync(path.join(folder, names.find((name) => name.startsWith(begin))), "utf8")
    .replace(/\},\{\},\[[^\]]*\], ?null\)/, "},{},[],null)");

const world = { console: { ...console, log: () => {} }, setTimeout, TextDecoder, TextEncoder, Uint8Array, ArrayBuffer };
world.window = world.global = world.self = world;
world.navigator = {};
vm.createContext(world);
vm.runInContext(modules("speedscope."), world);
const importer = modules("import.");
vm.runInContext(importer, world);

async function main() {
  for (const [, id] of importer.matchAll(/"?([A-Za-z0-9+/]{4})"?:\[function/g)) {
    let found;
    try {
      found = world.parcelRequire(id);
    } catch {
      continue;
    }
    if (found && found.importProfileGroupFromText) {
      const group = await found.importProfileGroupFromText(path.basename(file), fs.readFileSync(file, "utf8"));
      const shown = group.profiles.map((profile) => {
        const frames = [];
        profile.forEachFrame((frame) =>
          frames.push([frame.name, frame.file || "", frame.line || 0, frame.getSelfWeight(), frame.getTotalWeight()]),
        );
        return { name: profile.getName(), unit: profile.getWeightUnit(), total: profile.getTotalWeight(), frames };
      });
      process.stdout.write(JSON.stringify(shown));
      return;
    }
  }
  throw new Error("speedscope's importer is not where it was");
}

main();
