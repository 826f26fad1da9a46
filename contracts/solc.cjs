// node solc.cjs INPUT.json OUTPUT.json: the npm Solidity compiler on standard JSON, with files on both sides.
// Its own command line reads a pipe that may say EAGAIN, and truncates what it writes to one at 64 KiB.
"use strict";
const fs = require("fs");
const solc = require("solc");

fs.writeFileSync(process.argv[3], solc.compile(fs.readFileSync(process.argv[2], "utf8")));
