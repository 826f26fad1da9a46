// node compile.cjs [OUTPUT.json]: compile the registry, offline, into the one artifact of this folder.
//
// The artifact holds what both parties must agree on: the ABI, the bytecode, and where the constructor writes
// which immutable, so that a verifier can tell this code from any other. Same sources, same bytes: no metadata
// hash is appended, paths and times stay out.
"use strict";
const fs = require("fs");
const path = require("path");
const solc = require("solc");

const CONTRACT = "StudentRegistry";
const SOURCE = `src/${CONTRACT}.sol`;
// The same as in foundry.toml.
const SETTINGS = {
  evmVersion: "cancun",
  optimizer: { enabled: true, runs: 200 },
  metadata: { appendCBOR: false, bytecodeHash: "none" },
};

function read(name) {
  const folder = name.startsWith("@") ? path.join(__dirname, "node_modules") : __dirname;
  return fs.readFileSync(path.join(folder, name), "utf8");
}

function findImport(name) {
  try {
    return { contents: read(name) };
  } catch (error) {
    return { error: error.message };
  }
}

function compile() {
  const input = {
    language: "Solidity",
    sources: { [SOURCE]: { content: read(SOURCE) } },
    settings: {
      ...SETTINGS,
      outputSelection: {
        "*": { "": ["ast"] },
        [SOURCE]: { [CONTRACT]: ["abi", "evm.bytecode.object", "evm.deployedBytecode", "evm.methodIdentifiers"] },
      },
    },
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: findImport }));
  const errors = (output.errors || []).map((one) => one.formattedMessage);
  if (errors.length > 0) throw new Error(errors.join("\n"));
  return output;
}

/** Names of the declarations in a syntax tree, by their number. */
function declarations(node, names) {
  if (Array.isArray(node)) for (const one of node) declarations(one, names);
  else if (node !== null && typeof node === "object") {
    if (node.nodeType === "VariableDeclaration") names[node.id] = node.name;
    for (const one of Object.values(node)) declarations(one, names);
  }
  return names;
}

function artifact() {
  const output = compile();
  const contract = output.contracts[SOURCE][CONTRACT];
  const names = {};
  for (const source of Object.values(output.sources)) declarations(source.ast, names);
  const immutables = {};
  for (const [number, places] of Object.entries(contract.evm.deployedBytecode.immutableReferences)) {
    immutables[names[number]] = places.map((place) => place.start).sort((a, b) => a - b);
  }
  return {
    contractName: CONTRACT,
    compiler: { version: solc.version(), settings: SETTINGS },
    abi: contract.abi,
    methodIdentifiers: contract.evm.methodIdentifiers,
    // Byte offsets of the 32-byte words in deployedBytecode that the constructor fills, by the variable's name.
    immutableReferences: Object.fromEntries(Object.entries(immutables).sort()),
    bytecode: "0x" + contract.evm.bytecode.object,
    deployedBytecode: "0x" + contract.evm.deployedBytecode.object,
  };
}

const target = process.argv[2] || path.join(__dirname, `${CONTRACT}.json`);
fs.writeFileSync(target, JSON.stringify(artifact(), null, 1) + "\n");
