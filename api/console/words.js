// @ts-check
// Every word of the page in both languages. One key, one meaning.

/** @typedef {"zh" | "en"} Language */

const words = {
  zh: {
    subtitle: "能碳实时监控", theme: "明暗", online: "在线", offline: "断开", connecting: "连接中",
    estimate: "估算", powerNow: "当前用电功率", carbonNow: "当前碳排放速率", energyToday: "今日用电量",
    carbonToday: "今日碳排放", intensityNow: "当前主母线碳强度", completeness: "数据完整率",
    completenessOf: "今日有效读数覆盖的时间", sinceMidnight: "自零点", flowToday: "今日能流与碳流",
    intensityToday: "今日碳强度", nodesToday: "今日各节点", node: "节点", power: "功率", complete: "完整率 %",
    alarms: "报警", devices: "设备", noAlarms: "没有报警", noDevices: "没有设备", acknowledge: "确认",
    acknowledgedBy: "已确认:", operator: "确认人", "active-unack": "未确认", "active-ack": "已确认",
    "returned-unack": "已恢复,未确认", shelved: "已搁置", source: "来源", bus: "母线", converter: "转换",
    storage: "储能", load: "用能", export: "外送", up: "在线", down: "离线", unread: "未采集", since: "自",
    charge: "充", discharge: "放", degraded: "降级", healthDown: "故障", keyNeeded: "请输入访问密钥",
    keyWrong: "密钥不对", enter: "进入", noFlow: "今日暂无数据", scope: "范围", failed: "操作未成功:",
    inventory: "温室气体清单", toLive: "返回实时页", toInventory: "打开清单", period: "期间", methodSet: "核算方法",
    scopesByMonth: "范围 × 月份", byMonth: "按月构成", location: "基于位置", market: "基于市场", basis: "基准",
    sourcesOfEmissions: "排放源", factorsInUse: "使用的因子", declared: "声明", activities: "活动数据", kind: "类别",
    subject: "对象", amount: "数量", unit: "单位", use: "用途", evidence: "凭证", writeDown: "录入", back: "返回",
    close: "关闭", total: "合计", uncertainty: "不确定度", biogenic: "生物源(范围外)", removed: "移出(单列)",
    category: "类别 ISO 14064-1", factors: "因子", factor: "因子", estimatedShare: "估算占比", value: "数值", level: "层级",
    validFrom: "生效", published: "发布", document: "文件", confidence: "可信度", unverified: "未核对", usedBy: "用于",
    baseYear: "基准年", recalculation: "重算阈值", recalculationDue: "应重算,现为", excluded: "排除", notStated: "未声明不确定度", state: "状态",
    nothingDeclared: "工厂文件夹中没有声明", approve: "复核", waiting: "待复核", counted: "已计入", withdrawn: "已撤回",
    exported: "随外送能源离厂", net: "净额(扣除外送)", kindFuel: "燃料", kindGas: "气体泄放", kindWelding: "焊接保护气", kindFactor: "数量 × 因子", kindProcess: "过程公式",
    byStock: "按库存盘点", opening: "期初", bought: "购入", sold: "售出", closing: "期末", nameplateChange: "设备容量变化",
    more: "更多", spread: "分摊", spreadEven: "按时间均摊", spreadStart: "计入期初", spreadEnd: "计入期末", note: "备注",
    withdraw: "撤回", why: "原因?", fromCsv: "从 CSV 录入",
    combustion: "燃烧", activity: "活动", claims: "绿电与绿证", difference: "差额",
  },
  en: {
    subtitle: "Energy and carbon, live", theme: "Light or dark", online: "Online", offline: "Disconnected",
    connecting: "Connecting", estimate: "estimate", powerNow: "Electric power now", carbonNow: "Carbon rate now",
    energyToday: "Electricity today", carbonToday: "Carbon today", intensityNow: "Main bus intensity now",
    completeness: "Data completeness", completenessOf: "of today backed by good readings",
    sinceMidnight: "since midnight", flowToday: "Energy and carbon flow today",
    intensityToday: "Carbon intensity today", nodesToday: "Nodes today", node: "Node", power: "Power",
    complete: "Complete %", alarms: "Alarms", devices: "Devices", noAlarms: "No alarms", noDevices: "No devices",
    acknowledge: "Acknowledge", acknowledgedBy: "Acknowledged by ", operator: "Operator",
    "active-unack": "unacknowledged", "active-ack": "acknowledged", "returned-unack": "returned, unacknowledged",
    shelved: "shelved", source: "Sources", bus: "Buses", converter: "Conversion", storage: "Storage",
    load: "Loads", export: "Export", up: "up", down: "down", unread: "not read here", since: "since",
    charge: "charging", discharge: "discharging", degraded: "Degraded", healthDown: "Down",
    keyNeeded: "A key is needed", keyWrong: "That key is not right", enter: "Enter",
    noFlow: "No data today yet", scope: "Scope", failed: "That did not work: ",
    inventory: "Greenhouse gas inventory", toLive: "Back to the live page", toInventory: "Open the inventory",
    period: "Period", methodSet: "Method set", scopesByMonth: "Scopes by month", byMonth: "Month by month",
    location: "location-based", market: "market-based", basis: "Basis", sourcesOfEmissions: "Sources of emissions",
    factorsInUse: "Factors in use", declared: "Declared", activities: "Activity data", kind: "Kind", subject: "Subject",
    amount: "Amount", unit: "Unit", use: "Use", evidence: "Evidence", writeDown: "Write down", back: "Back",
    close: "Close", total: "Total", uncertainty: "Uncertainty", biogenic: "Biogenic, outside the scopes",
    removed: "Removed, apart", category: "Category ISO 14064-1", factors: "Factors", factor: "Factor",
    estimatedShare: "Estimated", value: "Value", level: "Level", validFrom: "Valid from", published: "Published",
    document: "Document", confidence: "Confidence", unverified: "unverified", usedBy: "Used by", baseYear: "Base year",
    recalculation: "recalculated from", recalculationDue: "to be recalculated, now", excluded: "Left out", notStated: "Uncertainty not stated", state: "State",
    nothingDeclared: "The plant folder declares nothing", approve: "Approve", waiting: "waits for approval",
    exported: "Left with sold energy", net: "Net of sold energy", kindFuel: "Fuel burned", kindGas: "Gas let go", kindWelding: "Welding gas", kindFactor: "Amount × factor",
    kindProcess: "Process formula", byStock: "By stock count", opening: "Opening", bought: "Bought", sold: "Sold",
    closing: "Closing", nameplateChange: "Nameplate change", more: "More", spread: "Spread", spreadEven: "evenly over time",
    spreadStart: "at the start", spreadEnd: "at the end", note: "Note", withdraw: "Withdraw", why: "why?",
    fromCsv: "Rows from a CSV", counted: "counts", withdrawn: "withdrawn", combustion: "Combustion", activity: "Activity",
    claims: "Green power claims", difference: "Difference",
  },
};

/** @type {Language} */
let language = read();

/** @returns {Language} */
function read() {
  const kept = localStorage.getItem("ecmc.language");
  if (kept === "zh" || kept === "en") return kept;
  return navigator.language.startsWith("zh") ? "zh" : "en";
}

export function inLanguage() {
  return language;
}

/** @param {Language} next */
export function speak(next) {
  language = next;
  localStorage.setItem("ecmc.language", next);
}

/** @param {string} key @returns {string} */
export function word(key) {
  return /** @type {Record<string, string>} */ (words[language])[key] ?? key;
}

/** A name the server gives in both languages. @param {{zh: string, en: string} | null} label */
export function named(label) {
  return label ? label[language] : "";
}

/** Figures as people read them: four digits are enough, an unknown one is a dash.
 * @param {number | null | undefined} value @param {number} [digits] */
export function figure(value, digits) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const places = digits ?? (size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : 2);
  return value.toLocaleString(language === "zh" ? "zh-CN" : "en-GB", {
    minimumFractionDigits: places, maximumFractionDigits: places,
  });
}

/** Put the words into the page. */
export function write() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = word(element.getAttribute("data-word") ?? "");
  }
  for (const element of document.querySelectorAll("[data-title]")) {
    element.setAttribute("title", word(element.getAttribute("data-title") ?? ""));
  }
}
